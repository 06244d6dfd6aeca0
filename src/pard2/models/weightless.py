"""A target without its weights: enough to say what it is, what ends its answers and what fits it."""

import contextlib

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from pard2.models.loading import load_config, load_tokenizer, resolve
from pard2.models.target import Target


def weightless_target(name: str) -> Target:
    """The target's shapes on torch's `meta` device with its tokenizer; it cannot run. Raises as loading it would."""
    config = load_config(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with contextlib.suppress(OSError):  # a model saved without one keeps the default
        # Chat models often name their end-of-turn tokens only here.
        model.generation_config = GenerationConfig.from_pretrained(resolve(name))
    return Target(model, load_tokenizer(name), name)
