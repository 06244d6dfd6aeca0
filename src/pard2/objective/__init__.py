"""Pure tensor functions: slot layout and mask, COD, CAT weights, losses. No model, no config, no global state."""
