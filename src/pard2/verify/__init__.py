"""Is decoding lossless here? Checks of what an engine emits against what its target itself says."""

FEWEST_SAMPLES = 20  # completions of a prompt: with fewer, not even the first token is tested by itself
