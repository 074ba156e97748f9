"""What algorithms are composed of; each usable alone."""
