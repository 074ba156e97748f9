"""Building blocks of the algorithms; each is usable alone."""
