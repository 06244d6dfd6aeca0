"""One pass of a model over the new tokens of several sequences: token batch, cache, decoders."""
