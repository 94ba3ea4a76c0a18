"""The wiring: an agent and its regions, a script's run from start to end, the start of a process."""
