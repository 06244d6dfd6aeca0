"""Training a draft: the step, the loop, its checkpoints, and evaluation by real decoding."""
