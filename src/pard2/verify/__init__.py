"""Is decoding lossless here? Checks of what an engine emits against what its target itself says."""
