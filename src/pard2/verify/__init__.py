"""Is decoding lossless here? Audits of what an engine says."""
