"""Environments that are not written in JAX, played by the host."""
