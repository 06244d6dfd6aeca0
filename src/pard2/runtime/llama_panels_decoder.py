"""`LlamaDecoder` on a CPU with matrices in panels: all layers of a pass are one compiled call of several
threads.
"""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pard2.hf import PreTrainedModel
from pard2.kernels.llama_layers import LayerWeights, PassRows, run_layers
from pard2.kernels.panels import Panels
from pard2.kernels.team import run_together, team_size
from pard2.kernels.weight_format import WeightFormat
from pard2.runtime.decoder import DecoderOutput
from pard2.runtime.kv_cache import KVCache
from pard2.runtime.llama_cpu_decoder import most_seen
from pard2.runtime.llama_decoder import Fill, LlamaDecoder
from pard2.runtime.token_batch import TokenBatch

_FEW_ROWS = 64  # of a pass whose workspace is kept


class LlamaPanelsDecoder(LlamaDecoder):
    """The same passes as `LlamaDecoder`'s, for weights in the formats `panels` and `int8`."""

    def __init__(self, model: PreTrainedModel, weight_format: WeightFormat, fill: Fill | None = None) -> None:
        super().__init__(model, weight_format, fill)
        layers = model.base_model.layers
        self._panels = [[_panels(layer.self_attn.q_proj.whole), _panels(layer.self_attn.o_proj)] for layer in layers]
        for panels, layer in zip(self._panels, layers, strict=True):
            panels += [_panels(layer.mlp.gate_proj.whole), _panels(layer.mlp.down_proj)]
        norms = [[getattr(layer, name) for layer in self._layers] for name in ("attention_norm", "query_norm", "key_norm", "mlp_norm")]
        self._kinds = sorted(self._windows, key=str)
        self._weights = LayerWeights(
            like=self._panels[0][0].like,
            matrices=np.array([[panels.numbers for panels in layer] for layer in self._panels]),
            norms=tuple(np.stack([np.zeros(0, np.float32) if norm is None else norm.detach().numpy() for norm in each]) for each in norms),
            last_norm=model.base_model.norm.weight.detach().numpy(),
            windows=np.array([self._kinds.index(layer.window) for layer in self._layers]),
        )
        self._known: tuple[Callable[[], KVCache | None], np.ndarray] = (lambda: None, np.empty(0))
        self._work: dict[tuple[int, int], tuple[np.ndarray, ...]] = {}

    def run(self, batch: TokenBatch, embeddings: Tensor | None, logit_rows: Tensor | None, layers: tuple[int, ...] = ()) -> DecoderOutput:
        given = self._model.base_model.embed_tokens(batch.token_ids) if embeddings is None else embeddings
        rows = PassRows(
            embeddings=given.contiguous().numpy(),
            rotation=self._rotation(batch).numpy(),
            places=batch.places,
            visible=np.stack([batch.visible(window) for window in self._kinds]),
            cache=self._addresses(batch.cache),
        )
        parts = team_size()
        work = self._workspace(len(given), parts, most_seen(rows.visible.reshape(-1, rows.visible.shape[2])))
        wanted = np.array([layer % (len(self._layers) + 1) for layer in layers], np.int64)
        features = np.empty((len(given), len(layers) * given.shape[1]), np.float32)
        numbers = batch.cache.num_places + 2, self._kv_heads, self._eps, self._head_dim**-0.5
        run_together(parts, run_layers, self._weights, numbers, rows, work, (features, wanted))
        made = torch.from_numpy(features) if layers else None
        if logit_rows is None:
            return DecoderOutput(None, made)
        last = torch.from_numpy(work[1][0])
        return DecoderOutput(self._model.get_output_embeddings()(last if len(logit_rows) == len(last) else last[logit_rows]), made)

    def _addresses(self, cache: KVCache) -> np.ndarray:
        """[layers, 2] of a cache's keys and values; as long as the cache lives they stay where they are."""
        if cache is self._known[0]():
            return self._known[1]
        like, found = torch.empty(0), []
        for index in range(len(self._layers)):
            cache.layer(index, self._kv_heads, self._head_dim, self._head_dim, like)
            found.append([array.ctypes.data for array in cache.arrays(index)])
        self._known = weakref.ref(cache), np.array(found)
        return self._known[1]

    def _workspace(self, rows: int, parts: int, seen: int) -> tuple[np.ndarray, ...]:
        """Arrays for what `run_layers` writes on the way. Those of small passes are kept for the next one."""
        room = 4 + (seen + 511) // 512 * 512
        held = self._work.get((rows, parts))
        if held is None or held[-1].shape[-1] < room:
            hidden, heads = self._model.config.hidden_size, (rows, self._heads, self._head_dim)
            qkv, out, gate_up, _ = (panels.padded_features for panels in self._panels[0])
            shapes: list[Any] = [(parts, rows, hidden), (parts, rows, hidden), (rows, qkv), heads, heads, (rows, out), (rows, gate_up)]
            shapes += [(rows, self._intermediate), (parts, self._heads // self._kv_heads, room)]
            held = tuple(np.empty(shape, np.float32) for shape in shapes)
            if rows <= _FEW_ROWS:
                self._work[rows, parts] = held
        return held


def _panels(module: Any) -> Panels:
    assert module.panels is not None
    return module.panels
