"""transformers' own `model.generate`, sped up by a draft: `custom_generate=pard2.transformers.generate`."""

from pard2.transformers.decode import forget, generate

__all__ = ["forget", "generate"]
