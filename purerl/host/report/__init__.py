"""Reports of a run: log, progress, plots, statistics over seeds."""
