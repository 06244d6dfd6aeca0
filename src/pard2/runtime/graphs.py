"""Passes replayed as captured CUDA graphs: one launch in place of some hundred.

Small passes (plain, draft and verify steps) are brought to one of few shapes (`PaddedBatch`), each captured
when it first occurs; prompts, whose passes are large, run as they are.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pard2.runtime.decoder import Decoder, DecoderOutput
from pard2.runtime.kv_cache import KVCache
from pard2.runtime.padded_batch import PaddedBatch, PaddedShape, is_small
from pard2.runtime.token_batch import TokenBatch

_SHORTEST = 256  # tokens of the shortest context that a shape is made for
_CHEAP = 1024  # a context that a shape may always be made for, however short the text is as yet: reading more padding costs little
_WARM_UP = 2

Function = Callable[[], DecoderOutput]


def new_capture() -> Callable[[Function], Function]:
    """`capture(run)` gives a function that replays what `run` does, on the tensors
    that it did it on. CUDA only.

    All that one `capture` has captured shares its memory, so an output must be used
    before anything else is replayed.
    """
    pool = torch.cuda.graph_pool_handle()

    def capture(run: Function) -> Function:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):  # buffers are made and kernels chosen before the capture
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            output = run()

        def replay() -> DecoderOutput:
            graph.replay()
            return output

        return replay

    return capture


@dataclass(frozen=True)
class _Graph:
    """inputs: embeddings [N, hidden] that the replay reads, padding included; None where it
    reads the batch's token ids."""

    batch: PaddedBatch
    inputs: Tensor | None
    replay: Function


class GraphedDecoder:
    """Another decoder's passes, replayed where they are small.

    decoder: runs what is captured, and what is not.
    most_sequences: of the largest batch that is replayed.
    capture: turns a pass into its replay (`new_capture`).
    """

    def __init__(self, decoder: Decoder, most_sequences: int, capture: Callable[[Function], Function]) -> None:
        self._decoder = decoder
        self._most_sequences = most_sequences
        self._capture = capture
        # A graph reads and writes one cache's buffers, and neither outlives it nor keeps it.
        self._graphs: weakref.WeakKeyDictionary[KVCache, dict[tuple, _Graph]] = weakref.WeakKeyDictionary()

    def run(self, batch: TokenBatch, embeddings: Tensor | None, logit_rows: Tensor | None, layers: tuple[int, ...] = ()) -> DecoderOutput:
        if logit_rows is None or len(batch.spans) > self._most_sequences or not is_small(batch):
            return self._decoder.run(batch, embeddings, logit_rows, layers)
        graph = self._graph(batch, embeddings, layers)
        ours = graph.batch.load(batch)
        if graph.inputs is not None and embeddings is not None:
            graph.inputs.index_copy_(0, ours, embeddings)
        output = graph.replay()
        assert output.logits is not None
        # Copies: the next replay overwrites what this one gave.
        return DecoderOutput(output.logits[ours[logit_rows]], None if output.features is None else output.features[ours])

    def _graph(self, batch: TokenBatch, embeddings: Tensor | None, layers: tuple[int, ...]) -> _Graph:
        graphs = self._graphs.setdefault(batch.cache, {})
        kind = (_sequences(len(batch.spans)), _tokens(int(batch.numbers[:, 2].max())), batch.has_trees, embeddings is not None, layers)
        length = _context(batch, [key[-1] for key in graphs if key[:-1] == kind])
        if (*kind, length) not in graphs:
            padded = PaddedBatch(weakref.proxy(batch.cache), PaddedShape(kind[0], kind[1], length, batch.has_trees), batch.device)
            inputs = None if embeddings is None else embeddings.new_zeros(padded.num_tokens, embeddings.shape[1])
            everything = torch.arange(padded.num_tokens, device=batch.device)

            def run() -> DecoderOutput:
                padded.prepare()
                return self._decoder.run(padded, inputs, everything, layers)

            graphs[*kind, length] = _Graph(padded, inputs, self._capture(run))
        return graphs[*kind, length]


def _sequences(count: int) -> int:
    """1, 2, 4, 8, 12, 16, 24, 32, 48, ..: the first that holds so many sequences."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if power > 8 and count <= power * 3 // 4 else power


def _tokens(count: int) -> int:
    """1, 2, 3, 5, 9, 17, ..: the newest token and a power of two of proposals."""
    return 1 if count == 1 else 1 + (1 << (count - 2).bit_length())


def _context(batch: TokenBatch, made: list[int]) -> int:
    """The length of context that a batch's shape is made for: one of those made already that
    fits, or a new power of two.

    As long as the sequences may become, so that none outgrows its shape while it is decoded; but
    for a text that may become very long not much longer than it is, because all of a shape's
    context is read in every pass.
    """
    longest = max(span.region.size for span in batch.spans)
    now = batch.max_context_len
    most = max(_CHEAP, 2 * now)
    fitting = [length for length in made if min(longest, max(_CHEAP, now)) <= length <= 2 * most]
    return min(fitting) if fitting else max(_SHORTEST, 1 << (min(longest, most) - 1).bit_length())
