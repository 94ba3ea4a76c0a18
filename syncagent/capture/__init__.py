"""The run's own file, which is readable after a kill."""
