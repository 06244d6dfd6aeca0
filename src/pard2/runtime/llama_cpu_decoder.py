"""`LlamaDecoder` on a CPU in float32, with compiled kernels for all that lies between the matrices."""

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from pard2.hf import PreTrainedModel
from pard2.kernels.weight_format import WeightFormat
from pard2.runtime.decoder import DecoderOutput
from pard2.runtime.llama_decoder import LlamaDecoder
from pard2.runtime.token_batch import TokenBatch

# Up to so many new tokens of a chain, and places seen by any token, our kernel attends, beyond that torch's.
# In plain decoding and in verification alike: a token then comes out the same in both, bit for bit, and so
# does the text. Hence a tree of any size is the kernel's. With more places torch's threads are twice as fast.
_FEW_TOKENS = 16
_NEAR = 1024


def has_kernels(model: PreTrainedModel, weight_format: WeightFormat) -> bool:
    """Whether `LlamaCpuDecoder` can run a model: one that computes in float32 on a CPU, with
    numba installed (extra `cpu`)."""
    return model.device.type == "cpu" and (weight_format in ("fbgemm", "onednn") or model.dtype == torch.float32) and find_spec("numba") is not None


@dataclass(frozen=True)
class _Arrays:
    """A layer's norm weights, in the memory of its parameters; empty where it has none."""

    attention: np.ndarray
    query: np.ndarray
    key: np.ndarray
    mlp: np.ndarray


class LlamaCpuDecoder(LlamaDecoder):
    """The same passes as `LlamaDecoder`'s, for models that `has_kernels` allows."""

    def __init__(self, model: PreTrainedModel, weight_format: WeightFormat = "plain") -> None:
        super().__init__(model, weight_format)
        self._norms = [_Arrays(*map(_array, (layer.attention_norm, layer.query_norm, layer.key_norm, layer.mlp_norm))) for layer in self._layers]
        self._last_norm = _array(model.base_model.norm.weight)

    def run(self, batch: TokenBatch, embeddings: Tensor | None, logit_rows: Tensor | None, layers: tuple[int, ...] = ()) -> DecoderOutput:
        from pard2.kernels import elementwise as kernels  # numba is an extra
        from pard2.kernels.attention import attend

        given = self._model.base_model.embed_tokens(batch.token_ids) if embeddings is None else embeddings
        rotation = self._rotation(batch).numpy()
        rows, eps, scale = len(given), self._eps, self._head_dim**-0.5
        # The residual stream changes in place; what it takes in next is kept apart until a norm reads both.
        stream = given.clone(memory_format=torch.contiguous_format)
        normed, hidden = torch.empty_like(stream), stream.new_empty(rows, self._intermediate)
        queries, attended = (stream.new_empty(rows, self._heads, self._head_dim) for _ in range(2))
        stream_, normed_, hidden_, queries_, attended_ = (tensor.numpy() for tensor in (stream, normed, hidden, queries, attended))
        update = np.zeros_like(stream_)
        flat = attended.view(rows, -1)
        visible = {window: batch.visible(window) for window in self._windows}
        few = all(span.count <= _FEW_TOKENS or span.parents is not None for span in batch.spans)
        most = {window: most_seen(seen) for window, seen in visible.items()}
        scores = np.empty((self._heads // self._kv_heads, min(_NEAR, max(most.values())) + 4), np.float32)
        wanted = {layer % (len(self._layers) + 1) for layer in layers}
        states = {}
        for index, (layer, norms) in enumerate(zip(self._layers, self._norms, strict=True)):
            kernels.add_and_norm(stream_, update, norms.attention, eps, normed_)
            if index in wanted:
                states[index] = stream.clone()
            qkv = layer.qkv(normed).numpy()
            keys, values = batch.cache.layer(index, self._kv_heads, self._head_dim, self._head_dim, stream)
            keys_, values_ = batch.cache.arrays(index)
            kernels.rotate_and_store(qkv, rotation, (norms.query, norms.key), eps, batch.places, queries_, keys_, values_, 0, 1)
            if few and most[layer.window] <= _NEAR:
                held = keys_.ctypes.data, values_.ctypes.data, self._kv_heads
                attend(queries_, held, visible[layer.window], scale, scores, attended_, 0, 1)
                seen = flat
            else:
                seen = batch.attend_stored(keys, values, queries, scale, layer.window).reshape(rows, -1)
            update = layer.attention_out(seen).numpy()
            kernels.add_and_norm(stream_, update, norms.mlp, eps, normed_)
            kernels.silu_and_multiply(layer.gate_up(normed).numpy(), hidden_, 0, 1)
            update = layer.down(hidden).numpy()
        kernels.add_and_norm(stream_, update, self._last_norm, eps, normed_)
        states[len(self._layers)] = normed
        return self._output(states, logit_rows, layers)


def most_seen(visible: np.ndarray) -> int:
    """How many places one row sees at most. visible: as `TokenBatch.visible` gives it."""
    return int((visible[:, 1] - visible[:, 0] + visible[:, 2]).max())


def _array(weight: Tensor | None) -> np.ndarray:
    return np.zeros(0, np.float32) if weight is None else weight.detach().numpy()
