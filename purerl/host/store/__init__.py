"""A run's folder: configuration, checkpoints, policies."""
