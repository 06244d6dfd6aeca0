"""The decoding engine: prompts in, the target's own tokens out, several for each of its passes."""
