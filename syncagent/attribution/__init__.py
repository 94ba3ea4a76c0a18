"""Which line, phase, step and rank a sync belongs to."""
