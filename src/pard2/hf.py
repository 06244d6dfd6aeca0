"""Types of transformers, for annotations.

A type checker sees the classes. To import them takes seconds, which commands that load no model need not wait
for; where a class is used, it is an attribute of the package, `transformers.AutoConfig`, and comes then.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Cache, GenerationConfig, PreTrainedConfig, PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer
else:
    Cache = GenerationConfig = PreTrainedConfig = PreTrainedModel = Tokenizer = Any

__all__ = ["Cache", "GenerationConfig", "PreTrainedConfig", "PreTrainedModel", "Tokenizer"]
