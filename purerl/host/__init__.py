"""What runs experiments from the host: nothing pure imports it."""
