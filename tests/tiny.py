"""Tiny random models for tests: they speak nonsense, but decide it as exactly as large ones do."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pard2.models.draft import Draft, DraftSpec
from pard2.models.pruning import cut_draft
from pard2.models.target import Target

MASK = 60  # the last id of the default vocabulary

# What each architecture needs beside the common shape. Windows are shorter than the texts of the tests.
_EXTRAS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"head_dim": 8, "sliding_window": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},  # learned positions: fails past its context
}


def tiny_model(
    architecture: str = "llama", seed: int = 0, layers: int = 2, hidden: int = 32, vocab: int = 61, context: int = 256, **extra: Any
) -> PreTrainedModel:
    """A random float32 causal LM without an end-of-answer token. The weights are large, so that its texts vary and near-ties are rare."""
    settings: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "initializer_range": 0.3,
        "eos_token_id": None,
        "bos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    if architecture == "gpt2":
        settings |= {"n_embd": hidden, "n_layer": layers, "n_head": 4, "n_positions": context}
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "intermediate_size",
        ):
            del settings[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **(settings | _EXTRAS[architecture] | extra))
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def tiny_target(
    seed: int = 0, layers: int = 2, hidden: int = 32, vocab: int = 61, architecture: str = "llama", context: int = 256, **extra: Any
) -> Target:
    """A target without a tokenizer; prompts are token ids."""
    return Target(tiny_model(architecture, seed, layers, hidden, vocab, context, **extra), name=f"tiny-{architecture}")


def tiny_draft(
    target: Target, layers: list[int] | None = None, draft_tokens: int = 6, projection: float = 0.5, seed: int = 1, mask_token: int = MASK
) -> Draft:
    """A PARD-2 draft cut out of the target: by default all its layers, so that its first guess in TI mode is always right.

    projection: size of the random projection's weights; 0 leaves it zero, where TD says what TI says.
    """
    draft = cut_draft(target, layers or list(range(target.num_states - 1)), mask_token, draft_tokens, target_layers=(-1, -2))
    torch.manual_seed(seed)
    assert draft.projection is not None
    with torch.no_grad():
        draft.projection.weight.normal_(0, projection)  # type: ignore[operator]
    return draft.eval().requires_grad_(False)


def tiny_lm_draft(seed: int = 5, layers: int = 1, hidden: int = 32, vocab: int = 61, architecture: str = "llama", context: int = 256) -> Draft:
    """An ordinary small LM, unrelated to any target."""
    return Draft(tiny_model(architecture, seed, layers, hidden, vocab, context), None, name="tiny-lm")


def perfect_draft(target: Target) -> Draft:
    """The target itself as an ordinary draft: by `vsd`, everything that it proposes is accepted."""
    return Draft(target.model, None, name="itself")


def pard_draft(target: Target, seed: int = 5, **shape: Any) -> Draft:
    """A PARD draft: a random LM with a mask token and no projection."""
    lm = tiny_model(seed=seed, vocab=target.vocab_size, **({"layers": 1} | shape))
    return Draft(lm, DraftSpec(mask_token=MASK, draft_tokens=6), None, name="tiny-pard")


def random_prompts(count: int, longest: int = 24, seed: int = 0, vocab: int = 60) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(0, vocab, (length,), generator=generator).tolist() for length in lengths]


def greedy(target: Target, prompt: list[int], max_new_tokens: int) -> list[int]:
    """The new tokens of transformers' own greedy `generate`."""
    ids = torch.tensor([prompt])
    output = target.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=0)
    return output[0, len(prompt) :].tolist()


def set_eos(target: Target, *token_ids: int) -> None:
    assert target.model.generation_config is not None
    target.model.generation_config.eos_token_id = list(token_ids)
