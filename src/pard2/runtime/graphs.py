"""Passes replayed as captured CUDA graphs: one launch in place of some hundred.

Small passes (plain, draft and verify steps) are brought to one of few shapes (`PaddedBatch`), each captured when it first
occurs; prompts, whose passes are large, run as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pard2.runtime.decoder import Decoder, DecoderOutput
from pard2.runtime.kv_cache import KVCache
from pard2.runtime.padded_batch import PaddedBatch
from pard2.runtime.token_batch import TokenBatch

_MOST_ROWS = 64  # of one sequence, in a pass worth a graph
_SHORTEST = 256  # positions of the shortest bucket of contexts
_WARM_UP = 2

Function = Callable[[], DecoderOutput]


def capture(run: Function) -> Callable[[], DecoderOutput]:
    """A function that replays what `run` does, on the tensors that it did it on. CUDA only."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):  # buffers are made and kernels chosen before the capture
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay() -> DecoderOutput:
        graph.replay()
        return output

    return replay


@dataclass(frozen=True)
class _Shape:
    batch: PaddedBatch
    inputs: Tensor  # token ids [N] or embeddings [N, hidden], padding included
    replay: Function


class GraphedDecoder:
    """Another decoder's passes, replayed where they are small.

    most_sequences: of the largest batch that is worth a graph. capture: turns a pass into its replay.
    """

    def __init__(self, decoder: Decoder, most_sequences: int, capture: Callable[[Function], Function] = capture) -> None:
        self._decoder = decoder
        self._most_sequences = most_sequences
        self._capture = capture
        # A graph reads and writes one cache's buffers, and must not outlive it.
        self._shapes: WeakKeyDictionary[KVCache, dict[tuple, _Shape]] = WeakKeyDictionary()

    def run(
        self, batch: TokenBatch, token_ids: Tensor | None, embeddings: Tensor | None, logit_rows: Tensor | None, layers: tuple[int, ...] = ()
    ) -> DecoderOutput:
        given = token_ids if embeddings is None else embeddings
        assert given is not None
        if logit_rows is None or len(batch.segments) > self._most_sequences or max(s.count for s in batch.segments) > _MOST_ROWS:
            return self._decoder.run(batch, token_ids, embeddings, logit_rows, layers)
        shape = self._shape(batch, given, embeddings is not None, layers)
        ours = shape.batch.load(batch)
        shape.inputs.index_copy_(0, ours, given)
        output = shape.replay()
        assert output.logits is not None
        # Copies: the next replay overwrites what this one gave.
        return DecoderOutput(output.logits[ours[logit_rows]], None if output.features is None else output.features[ours])

    def _shape(self, batch: TokenBatch, given: Tensor, embedded: bool, layers: tuple[int, ...]) -> _Shape:
        sequences = _bucket(len(batch.segments), 1)
        rows = max(segment.count for segment in batch.segments)
        max_context_len = _bucket(batch.max_context_len, _SHORTEST)
        shapes = self._shapes.setdefault(batch.cache, {})
        key = (sequences, rows, max_context_len, embedded, layers)
        if key not in shapes:
            fixed = PaddedBatch(batch.cache, sequences, rows, max_context_len, batch.device)
            inputs = given.new_zeros(fixed.rows, *given.shape[1:])
            everything = torch.arange(fixed.rows, device=batch.device)

            def run() -> DecoderOutput:
                return self._decoder.run(fixed, None if embedded else inputs, inputs if embedded else None, everything, layers)

            shapes[key] = _Shape(fixed, inputs, self._capture(run))
        return shapes[key]


def _bucket(number: int, least: int) -> int:
    """The smallest power of two times `least` that holds a number."""
    while least < number:
        least *= 2
    return least
