"""What a run tells: log, progress, plots, statistics over seeds."""
