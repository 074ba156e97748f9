"""Replay buffers, written in place."""
