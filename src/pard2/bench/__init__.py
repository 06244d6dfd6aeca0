"""Measuring decoding methods side by side: what is run, in which turn, and what the numbers say."""
