"""torch's private parts, and what stands between its dispatcher and the sensors."""
