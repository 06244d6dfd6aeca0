"""Training a draft: the step, the loop, its state, and evaluation by real decoding."""
