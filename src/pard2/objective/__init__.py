"""Pure tensor functions: slots, their mask, COD, CAT weights, losses. No model, config or global state."""
