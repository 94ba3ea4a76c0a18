"""What a sync costs the GPU, what a job gains without it, and what to write instead."""
