"""pard2: train PARD-2 drafts, decode losslessly with them, measure them, hand them on."""

__version__ = "0.1.0"
