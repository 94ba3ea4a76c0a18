"""What a sync costs the GPU, how much faster a job is without it, and what to write instead."""
