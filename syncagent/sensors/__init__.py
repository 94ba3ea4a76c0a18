"""Sensors: each one notices, in its own way, that a thread waits for the GPU."""
