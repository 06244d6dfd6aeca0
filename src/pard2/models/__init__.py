"""Models: the frozen target with its features, the draft with its projection, and how both are read and written."""
