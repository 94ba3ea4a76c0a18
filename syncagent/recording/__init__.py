"""From a wait on the training thread to a small record in that thread's buffer."""
