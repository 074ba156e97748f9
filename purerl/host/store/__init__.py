"""A run's folder: what is written and read again."""
