"""The forward pass of Llama-like models in as few operations as it takes, for ragged batches.

A pass over one row is some hundred small operations between matrices that are read once; run through
transformers' modules, the small operations cost more than the matrices. This is the fast twin of
`TransformersDecoder`, and the tests hold it against that. Query, key and value projection are one
matrix here, gate and up another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pard2.hf import PreTrainedModel
from pard2.kernels.fused import FusedLinear, fuse
from pard2.kernels.packed import PackedLinear
from pard2.kernels.weight_format import WeightFormat, convert_linears
from pard2.runtime.decoder import DecoderOutput
from pard2.runtime.token_batch import TokenBatch
from pard2.runtime.windows import attention_windows

Linear = Callable[[Tensor], Tensor]
Fill = Callable[[nn.Module], None]

_ARCHITECTURES = {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"}


def is_llama_like(model: PreTrainedModel) -> bool:
    """True for a model that `LlamaDecoder` computes as its own code does."""
    if type(model).__name__ not in _ARCHITECTURES or model.config.hidden_act != "silu":
        return False
    if model.config.rope_parameters["rope_type"] not in ("default", "linear", "llama3", "yarn"):
        return False  # frequencies that follow the length of the text have no one table
    # Anything but plain linear layers (adapters, quantised weights) is left to its own code.
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    inner = [module for name, module in model.base_model.layers.named_modules() if name.endswith(names)]
    return len(inner) == len(names) * len(model.base_model.layers) and all(type(module) is nn.Linear for module in inner)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    attention_norm: Tensor
    qkv: Linear
    query_norm: Tensor | None  # Qwen 3 normalises each head
    key_norm: Tensor | None
    attention_out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear
    window: int | None


class LlamaDecoder:
    """Runs ragged batches with the weights of a transformers model.

    weight_format: of its matrices; the model's own layers get it, too.
    fill: gives a part of a model without weights its own.
    """

    def __init__(self, model: PreTrainedModel, weight_format: WeightFormat = "plain", fill: Fill | None = None) -> None:
        config = model.config
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._head_dim: int = model.base_model.layers[0].self_attn.head_dim
        self._intermediate: int = config.intermediate_size
        self._eps: float = config.rms_norm_eps
        self._model = model
        self._tables: list[Tensor] = []  # all that there were: captured graphs go on reading those outgrown
        layers = model.base_model.layers
        fused = []
        for layer in layers:  # one whole after the other: of a model that is filled here, no more than a layer is ever in another form
            if fill is not None:
                fill(layer)
            qkv = fuse(layer.self_attn, ["q_proj", "k_proj", "v_proj"], weight_format)
            fused.append((qkv, fuse(layer.mlp, ["gate_proj", "up_proj"], weight_format)))
            convert_linears(layer, weight_format)
        if fill is not None:
            fill(model)
        convert_linears(model, weight_format)
        windows = attention_windows(config)
        self._windows = set(windows)
        self._layers = [_read_layer(*found) for found in zip(layers, fused, windows, strict=True)]

    def run(self, batch: TokenBatch, embeddings: Tensor | None, logit_rows: Tensor | None, layers: tuple[int, ...] = ()) -> DecoderOutput:
        base = self._model.base_model
        x = base.embed_tokens(batch.token_ids) if embeddings is None else embeddings
        cos, sin = self._rotation(batch)[:, :, None].to(x.dtype)
        wanted = {layer % (len(self._layers) + 1) for layer in layers}
        states = {}
        for index, layer in enumerate(self._layers):
            if index in wanted:
                states[index] = x
            x = x + layer.attention_out(self._attend(index, layer, self._norm(x, layer.attention_norm), batch, cos, sin))
            gate, up = layer.gate_up(self._norm(x, layer.mlp_norm)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate).mul_(up))
        states[len(self._layers)] = self._norm(x, base.norm.weight)
        return self._output(states, logit_rows, layers)

    def linears(self) -> list[tuple[Linear, int, int]]:
        """(product, inputs, outputs) of every matrix that a pass reads, in its order, the head
        last: what cannot be spared."""
        hidden, heads = self._model.config.hidden_size, self._heads * self._head_dim
        found: list[tuple[Linear, int, int]] = []
        for layer in self._layers:
            found += [
                (layer.qkv, hidden, heads + 2 * self._kv_heads * self._head_dim),
                (layer.attention_out, heads, hidden),
                (layer.gate_up, hidden, 2 * self._intermediate),
                (layer.down, self._intermediate, hidden),
            ]
        return [*found, (self._model.get_output_embeddings(), hidden, self._model.config.vocab_size)]

    def _output(self, states: dict[int, Tensor], logit_rows: Tensor | None, layers: tuple[int, ...]) -> DecoderOutput:
        """Features of the layers asked for, and the logits of the rows asked for."""
        count = len(self._layers)
        features = torch.cat([states[layer % (count + 1)] for layer in layers], dim=-1) if layers else None
        if logit_rows is None:
            return DecoderOutput(None, features)
        last = states[count]
        head = self._model.get_output_embeddings()
        return DecoderOutput(head(last if len(logit_rows) == len(last) else last[logit_rows]), features)

    def _rotation(self, batch: TokenBatch) -> Tensor:
        """Cosines and sines, [2, N, head_dim / 2], of the rows' positions, in float32, from a table
        that doubles when outgrown."""
        if not self._tables or batch.max_context_len > self._tables[-1].shape[1] or self._tables[-1].device != batch.device:
            # Inference tensors could not be used by a later pass outside of inference mode.
            with torch.inference_mode(False), torch.no_grad():
                positions = torch.arange(max(256, 2 * batch.max_context_len), device=batch.device)
                like = torch.empty(0, dtype=torch.float32, device=batch.device)
                both = self._model.base_model.rotary_emb(like, positions[None])
                self._tables.append(torch.stack([part[0, :, : self._head_dim // 2] for part in both]))
        return self._tables[-1][:, batch.positions]

    def _attend(self, index: int, layer: _Layer, x: Tensor, batch: TokenBatch, cos: Tensor, sin: Tensor) -> Tensor:
        """[N, H * head_dim] from normalised states [N, hidden]. cos, sin: [N, 1, head_dim / 2]."""
        rows, rotated = len(x), self._heads + self._kv_heads
        qkv = layer.qkv(x).view(rows, rotated + self._kv_heads, self._head_dim)
        qk = qkv[:, :rotated]
        if layer.query_norm is not None and layer.key_norm is not None:
            qk = torch.cat([self._norm(qk[:, : self._heads], layer.query_norm), self._norm(qk[:, self._heads :], layer.key_norm)], dim=1)
        a, b = qk.chunk(2, dim=-1)
        qk = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
        output = batch.attend(index, qk[:, : self._heads], qk[:, self._heads :], qkv[:, rotated:], self._head_dim**-0.5, layer.window)
        return output.reshape(rows, -1)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
        return F.rms_norm(x, weight.shape, weight, self._eps)


def _read_layer(layer: Any, fused: tuple[FusedLinear | PackedLinear, FusedLinear | PackedLinear], window: int | None) -> _Layer:
    attention = layer.self_attn
    normed = hasattr(attention, "q_norm")
    return _Layer(
        attention_norm=layer.input_layernorm.weight,
        qkv=fused[0].forward,
        query_norm=attention.q_norm.weight if normed else None,
        key_norm=attention.k_norm.weight if normed else None,
        attention_out=attention.o_proj.forward,  # past the look for hooks, which costs as much as a small operation
        mlp_norm=layer.post_attention_layernorm.weight,
        gate_up=fused[1].forward,
        down=layer.mlp.down_proj.forward,
        window=window,
    )
