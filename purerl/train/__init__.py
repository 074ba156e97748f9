"""Whole runs and evaluation, pure; ``purerl.run`` drives them from the host."""
