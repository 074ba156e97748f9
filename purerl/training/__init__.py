"""A whole run as a pure function of a key."""
