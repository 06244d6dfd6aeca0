"""Tiny random models for tests: they speak nonsense, but decide it as exactly as large ones do."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pard2.checkpoints.pruning import cut_draft
from pard2.models.draft import Draft, DraftSpec
from pard2.models.target import Target

MASK = 60  # the last id of the default vocabulary

_GPT2 = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}  # learned positions: fails past its context
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
_LATENT = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8}

# What each architecture needs beside the common shape. Windows are shorter than the texts of the tests.
_EXTRAS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"head_dim": 8, "sliding_window": 8},
    "gemma2": _GEMMA | {"sliding_window": 8},
    "gemma3_text": _GEMMA | {"sliding_window": 8},
    "gpt2": _GPT2,
    # --- further ones, as targets of any kind
    "gemma": {"head_dim": 8},
    "phi3": {"sliding_window": 8},
    "phi": {},
    "gpt_neox": {},
    "gpt_bigcode": _GPT2,  # one key-value head
    "opt": {"ffn_dim": 64, "dropout": 0.0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "qwen2_moe": _EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 16},
    "qwen3_moe": _EXPERTS | {"num_experts": 4, "head_dim": 8},
    "olmo2": {},
    "olmo3": {"sliding_window": 8},
    "starcoder2": {"sliding_window": 8},
    "cohere": {},
    "cohere2": {"sliding_window": 8},
    "granite": {"logits_scaling": 2.0, "attention_multiplier": 0.5, "residual_multiplier": 0.7, "embedding_multiplier": 3.0},
    "glm4": {"head_dim": 8},
    "nemotron": {},
    "smollm3": {},
    "exaone4": {"sliding_window": 8},
    "deepseek_v3": _EXPERTS | _LATENT | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "gemma3n_text": _GEMMA
    | {"sliding_window": 8, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "laurel_rank": 4, "vocab_size_per_layer_input": 61}
    | {"activation_sparsity_pattern": [0.0] * 6, "layer_types": ["sliding_attention", "full_attention"] * 3, "altup_num_inputs": 2},
    # --- those that are refused
    "gpt_oss": _EXPERTS | {"num_local_experts": 4, "sliding_window": 8, "head_dim": 8},
    "minimax_m2": _EXPERTS | {"num_local_experts": 4, "sliding_window": 8},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "diffllama": {},
    "stablelm": {},
    "doge": {},
    "bert": {"is_decoder": False},
    "bloom": {},
    "falcon": {},
    "mamba": {},
    "jamba": {"num_experts": 2, "num_experts_per_tok": 1},
    "llama4_text": _EXPERTS | {"num_local_experts": 2, "head_dim": 8},
    "qwen3_next": _EXPERTS | {"num_experts": 4, "head_dim": 8},
}


def tiny_model(
    architecture: str = "llama", seed: int = 0, layers: int = 2, hidden: int = 32, vocab: int = 61, context: int = 256, **extra: Any
) -> PreTrainedModel:
    """A random float32 causal LM without an end-of-answer token.

    The weights are large, so that its texts vary and near-ties are rare.
    """
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
    if architecture in ("gpt2", "gpt_bigcode"):
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
    """A PARD-2 draft cut out of the target.

    layers: of the target; by default all, so that its first proposal in TI mode is always right.
    projection: size of the random projection's weights; 0 leaves it zero, where TD proposes what TI does.
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
