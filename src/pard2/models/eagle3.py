"""The EAGLE-3 draft: one decoder layer that reads the target's features and proposes token by token
(METHOD: section 9, arXiv 2503.01840).

Its module names are those of the published checkpoints. It knows what the input and the output of a slot are,
and nothing about which slots see each other: whoever runs it brings the attention.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from pard2.errors import Pard2Error
from pard2.hf import PreTrainedConfig, Tokenizer
from pard2.kernels.weight_format import WeightFormat, convert_linears
from pard2.models.draft_kind import DraftKind
from pard2.runtime.support import context_limit
from pard2.runtime.token_batch import TokenBatch
from pard2.runtime.windows import attention_windows

DEFAULT_DEPTHS = 7  # of the chains that are unrolled in training
# Rotary frequencies that do not change with the length of a text.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")

FeatureNorm = Literal["none", "joint", "each"]
# Attends from queries [N, H, D] over keys and values [N, KV, D], theirs and those before: [N, H, D].
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Eagle3Spec:
    """What an EAGLE-3 checkpoint's config says beside the layer itself.

    target_layers: the target's hidden states that `fc` fuses, numbered as `Target`'s.
    target_hidden_size: width of one of them.
    draft_tokens: the deepest chain that it was trained for.
    norm_before_residual: the residual stream begins with the normalised feature, else with the feature.
    norm_output: the next depth's feature is the state after the final norm, else the one before.
    feature_norm: of the hidden states before `fc`: none, one over all together (`norm_before_fc`), or one for
        each (`fc_norm`).
    made_for, template_arguments: as in `DraftSpec`.
    """

    target_layers: tuple[int, ...]
    target_hidden_size: int
    draft_tokens: int = DEFAULT_DEPTHS
    norm_before_residual: bool = False
    norm_output: bool = False
    feature_norm: FeatureNorm = "none"
    made_for: dict[str, str] | None = field(default=None, compare=False)
    template_arguments: list[dict[str, Any]] | None = None


def default_layers(num_blocks: int) -> tuple[int, int, int]:
    """The hidden states that are fused by default: low, middle and high, (2, n // 2, n - 3) of n blocks.

    Numbered as Hugging Face's `hidden_states`, whose 0 is the embedding's output; DFlash's numbers for the
    same states are one lower.

    Raises `Pard2Error` for a target of so few blocks that two of the three are one.
    """
    layers = (2, num_blocks // 2, num_blocks - 3)
    if not 2 < num_blocks // 2 < num_blocks - 3:
        raise Pard2Error(
            f"a target of {num_blocks} layers is too small for EAGLE-3's default features, which are hidden states 2, {num_blocks // 2} and "
            f"{num_blocks - 3}; name three others with draft.target_layers"
        )
    return layers


class _Norm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class _Attention(nn.Module):
    """The projections of attention; queries, keys and values are made of embedding and feature side by
    side."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.head_dim: int = config.head_dim
        bias: bool = config.attention_bias
        queries, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(2 * config.hidden_size, queries, bias=bias)
        self.k_proj = nn.Linear(2 * config.hidden_size, keys, bias=bias)
        self.v_proj = nn.Linear(2 * config.hidden_size, keys, bias=bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=bias)
        normed = config.model_type == "qwen3"  # which normalises each head
        self.q_norm = _Norm(self.head_dim, config.rms_norm_eps) if normed else None
        self.k_norm = _Norm(self.head_dim, config.rms_norm_eps) if normed else None

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """[N, hidden] of [N, 2 * hidden]. rotation: cosines and sines, [N, 1, R / 2]."""
        q, k, v = (part(x).unflatten(-1, (-1, self.head_dim)) for part in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return self.o_proj(attend(_rotated(q, *rotation), _rotated(k, *rotation), v).flatten(1))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [N, heads, D] with its first R <= D numbers of each head turned."""
    width = 2 * cos.shape[-1]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x[..., :width].chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, x[..., width:]], dim=-1)


class _Mlp(nn.Module):
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        bias = getattr(config, "mlp_bias", False)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=bias)
        self._activation = transformers.activations.ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self._activation(self.gate_proj(x)) * self.up_proj(x))


class _Layer(nn.Module):
    def __init__(self, config: PreTrainedConfig, norm_before_residual: bool) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm, self.hidden_norm, self.post_attention_layernorm = (_Norm(width, eps) for _ in range(3))
        self.self_attn = _Attention(config)
        self.mlp = _Mlp(config)
        self._norm_before_residual = norm_before_residual

    def forward(self, embeddings: Tensor, feature: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """The stream [N, hidden] after the layer, of embeddings and features [N, hidden]."""
        normed = self.hidden_norm(feature)
        stream = normed if self._norm_before_residual else feature
        stream = stream + self.self_attn(torch.cat([self.input_layernorm(embeddings), normed], dim=-1), rotation, attend)
        return stream + self.mlp(self.post_attention_layernorm(stream))


class Eagle3Draft(nn.Module):
    """The layer, what fuses features for it, and a head over D of the target's V tokens.

    token_ids: [D] the target's id of each token that it can propose.
    embed_tokens: its own table, or the target's, which is then no part of it.
    """

    token_ids: Tensor

    def __init__(
        self,
        config: PreTrainedConfig,
        spec: Eagle3Spec,
        token_ids: Tensor,
        embedding: nn.Module | None = None,
        tokenizer: Tokenizer | None = None,
        name: str = "draft",
    ) -> None:
        """An untrained draft.

        config: of the layer, a Llama's or a Qwen 3's, whose `vocab_size` is the target's V.
        token_ids: [D], different.
        embedding: the target's, which must be as wide as the draft; None for one of its own.

        Raises `Pard2Error` for more than one layer, and rotary frequencies that follow the length of the
        text.
        """
        super().__init__()
        _check(config, name)
        self.config, self.spec, self.tokenizer, self.name = config, spec, tokenizer, name
        width, features = config.hidden_size, spec.target_hidden_size * len(spec.target_layers)
        self.owns_embedding = embedding is None
        if embedding is None:
            self.embed_tokens = nn.Embedding(config.vocab_size, width)
        else:
            self.__dict__["embed_tokens"] = embedding  # belongs to the target: neither moved, nor saved, nor trained with the draft
        self.input_norm = _Norm(features, config.rms_norm_eps) if spec.feature_norm == "joint" else None
        each = [_Norm(spec.target_hidden_size, config.rms_norm_eps) for _ in spec.target_layers]
        self.fc_norm = nn.ModuleList(each) if spec.feature_norm == "each" else None
        self.fc = nn.Linear(features, width, bias=bool(getattr(config, "bias", False)))
        self.midlayer = _Layer(config, spec.norm_before_residual)
        self.norm = _Norm(width, config.rms_norm_eps)
        self.lm_head = nn.Linear(width, len(token_ids), bias=False)
        self.register_buffer("token_ids", token_ids.long(), persistent=False)
        self.rotary_emb = rotary_embedding(config)
        self._window = attention_windows(config)[0]

    # --- what it is -------------------------------------------------------------------------------

    kind = DraftKind.EAGLE3
    num_layers = 1

    @property
    def commit(self) -> str | None:
        """The commit that the hub gave; None where it comes from elsewhere."""
        return getattr(self.config, "_commit_hash", None)

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def head_weight(self) -> Tensor:
        """[D, hidden], the rows of the tokens that it can propose."""
        return self.lm_head.weight

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """The weights that have a row for each token."""
        return (self.lm_head.weight, self.embed_tokens.weight) if self.owns_embedding else (self.lm_head.weight,)

    @property
    def vocab_size(self) -> int:
        """V, of the target's tokens that it reads."""
        return self.config.vocab_size

    @property
    def blocks(self) -> nn.ModuleList:
        return nn.ModuleList([self.midlayer])

    @property
    def context_length(self) -> int:
        return context_limit(self.config)

    @property
    def decoder_dtype(self) -> torch.dtype:
        """Of activations, and so of the cache."""
        return self.norm.weight.dtype

    def get_ready(self, cuda_graphs: bool | None, most_sequences: int) -> None:
        """Raises `Pard2Error` where graphs are demanded: its passes cannot be captured."""
        if cuda_graphs:
            raise Pard2Error(f"`cuda_graphs`: the passes of an EAGLE-3 draft ({self.name!r}) cannot be captured; leave it out")

    def convert(self, weight_format: WeightFormat) -> None:
        """Bring the linear layers into this format: it can then be neither trained nor saved."""
        convert_linears(self, weight_format)

    # --- a slot's way -----------------------------------------------------------------------------

    def fuse(self, features: Tensor) -> Tensor:
        """g [N, hidden] of the target's hidden states side by side, [N, layers * target_hidden_size]."""
        if self.input_norm is not None:
            features = self.input_norm(features)
        if self.fc_norm is not None:
            parts = features.chunk(len(self.fc_norm), dim=-1)
            features = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        return self.fc(features)

    def states(self, token_ids: Tensor, feature: Tensor, positions: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        """Of N slots: [N, hidden] after the final norm, which the head reads, and [N, hidden] that the next
        depth takes as feature.

        token_ids: [N].
        feature: [N, hidden], `fuse`'s at depth 0, the slot before's own output deeper.
        positions: [N].
        """
        cos, sin = self.rotary_emb(feature[:1].float(), positions[None])
        rotation = (cos[0, :, None, : cos.shape[-1] // 2], sin[0, :, None, : sin.shape[-1] // 2])
        stream = self.midlayer(self.embed_tokens(token_ids).to(feature.dtype), feature, rotation, attend)
        final = self.norm(stream)
        return final, final if self.spec.norm_output else stream

    @torch.no_grad()
    def run(self, batch: TokenBatch, feature: Tensor, logit_rows: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Run the new slots of several sequences: logits [R, D] of those asked for, and the features [N,
        hidden] that the next depth takes.

        batch: N slots.
        feature: [N, hidden] as for `states`.
        logit_rows: [R] numbers of the slots whose logits are wanted; None for none.
        """

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return batch.attend(0, q, k, v, self.midlayer.self_attn.head_dim**-0.5, self._window)

        final, following = self.states(batch.token_ids, feature, batch.positions, attend)
        return None if logit_rows is None else self.lm_head(final[logit_rows]), following


def layer_config(target: PreTrainedConfig, **changes: Any) -> PreTrainedConfig:
    """The config of a draft's layer for a target of this (text) config: a Llama's, of the target's sizes.

    changes: entries that shall differ.
    """
    names = ["vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps"]
    names += ["max_position_embeddings", "rope_parameters", "hidden_act", "bos_token_id", "eos_token_id", "pad_token_id"]
    said = {name: getattr(target, name) for name in names if getattr(target, name, None) is not None}
    said.setdefault("hidden_act", getattr(target, "hidden_activation", None) or "silu")
    return transformers.LlamaConfig(**(said | {"num_hidden_layers": 1, "tie_word_embeddings": False} | changes))


def rotary_embedding(config: PreTrainedConfig) -> nn.Module:
    """What gives the cosines and sines of a layer of this config."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # a second of imports

    rope = config.rope_parameters
    if rope["rope_type"] == "default" and rope.get("partial_rotary_factor", 1.0) != 1.0:
        # Llama's default kind turns whole heads; the linear kind by 1 is the same, and heeds the part.
        config = copy.deepcopy(config)
        config.rope_parameters = rope | {"rope_type": "linear", "factor": 1.0}
    return LlamaRotaryEmbedding(config)


def _check(config: PreTrainedConfig, name: str) -> None:
    if config.model_type not in ("llama", "qwen3"):
        raise Pard2Error(f"{name!r}: the layer of an EAGLE-3 draft is a Llama's or a Qwen 3's here, not {config.model_type!r}")
    if config.num_hidden_layers != 1:
        raise Pard2Error(f"{name!r} has {config.num_hidden_layers} layers; an EAGLE-3 draft has one")
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") not in _ROPE_TYPES:
        raise Pard2Error(f"{name!r} has {rope['rope_type']!r} rotary frequencies, which change with the length of the text; not supported")
