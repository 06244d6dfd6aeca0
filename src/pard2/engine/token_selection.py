"""Tokens for a whole batch: each sequence by its own settings, and one wait for the device for all of them."""

import dataclasses
import math
from collections.abc import Callable
from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pard2.engine.options import DraftSampling, VerificationRule
from pard2.engine.processors import probabilities, process_logits
from pard2.engine.randomness import Purpose, block_uniforms, uniforms
from pard2.engine.sampling import SamplingParams
from pard2.engine.sequence import Sequence
from pard2.engine.statistics import TokenLogprob
from pard2.engine.verification import NOTHING, Choices, choose_by_block, choose_by_rejection, choose_coupled, choose_greedy, inverse_cdf

# Block verification drops proposals for their values, so no later block may meet the numbers that they were drawn by.
_NUMBERS = {"token": uniforms, "block": block_uniforms}


@dataclass(frozen=True)
class Chosen:
    """What a pass of the target brought one sequence, on the host.

    block: the accepted tokens and the target's own next one. accepted: len(block) - 1. proposed: how many tokens the draft had
    brought, up to its first NOTHING. sound: False if the logits that the block was chosen by hold NaN or inf, or nothing finite.
    """

    block: list[int]
    accepted: int
    proposed: int
    sound: bool
    logprobs: list[TokenLogprob] | None


class ProposalChooser:
    """Takes a draft's guesses from its logits: the most probable ones, or, for sequences that sample, drawn ones.

    A row of logits whose largest is no number (NaN, inf) guesses NOTHING. This is the one way from any draft to any rule.
    q: [k, vocabulary] by sequence, what its guesses were drawn from; no entry where the most probable ones were taken.
    """

    def __init__(self, sequences: ListOf[Sequence], sampling: DraftSampling, rule: VerificationRule, vocab_size: int) -> None:
        self._sequences = sequences
        self._sampling = sampling
        self._numbers = _NUMBERS[rule]
        self._vocab_size = vocab_size
        self._drawn: dict[int, list[Tensor]] = {}

    def __call__(self, logits: Tensor, numbers: ListOf[int], places: ListOf[int]) -> Tensor:
        highest, tokens = _largest(logits)
        tokens = _or_nothing(tokens, highest)
        if self._sampling == "greedy":
            return tokens
        for number in dict.fromkeys(numbers):
            sequence = self._sequences[number]
            if sequence.params.greedy:
                continue
            rows = [row for row, owner in enumerate(numbers) if owner == number]
            q = probabilities(logits[rows], _without_penalties(sequence.params), None, tokens[:0])
            q = F.pad(q, (0, self._vocab_size - q.shape[-1]))  # a draft may know fewer tokens than its target
            first = places[rows[0]]
            u = self._numbers(sequence.seed, sequence.index, len(sequence.tokens), first + len(rows), Purpose.DRAFT, q.device)
            # Softmax makes a whole row NaN of one number that is none; dividing by the temperature may have overflowed, too.
            tokens[rows] = _or_nothing(inverse_cdf(q, u[first:]), q[:, 0])
            self._drawn.setdefault(number, []).append(q)
        return tokens

    def q(self, number: int) -> Tensor | None:
        return torch.cat(self._drawn[number]) if number in self._drawn else None


def _or_nothing(tokens: Tensor, numbers: Tensor) -> Tensor:
    """The tokens [N], and NOTHING where the number [N] that comes with one is NaN or infinite."""
    if numbers.is_cpu and all(map(math.isfinite, numbers.tolist())):  # costs a fortieth of the operations below
        return tokens
    return torch.where(numbers.isfinite(), tokens, NOTHING)


def _without_penalties(params: SamplingParams) -> SamplingParams:
    """What a draft draws by. Its tokens are drawn at once, so none has those before it to be penalised by."""
    return dataclasses.replace(params, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, seed=None)


def choose(
    sequences: ListOf[Sequence],
    logits: Tensor,
    proposals: ListOf[Tensor],
    drawn: Callable[[int], Tensor | None],
    rule: VerificationRule,
) -> list[Chosen]:
    """What each sequence says next. logits: the target's, [sum of (k + 1), V], k + 1 rows of each sequence. proposals: [k] of each.

    drawn: what a sequence's proposals were drawn from (`ProposalChooser.q`).
    """
    highest, top = _largest(logits)
    counts = [len(proposed) + 1 for proposed in proposals]
    if all(s.params.greedy and not s.params.processed and s.params.logprobs is None for s in sequences):
        return _unpack_greedy(counts, torch.cat([highest.double(), top.double(), *(p.double() for p in proposals if len(p))]).tolist())
    parts: list[Tensor] = []
    of_each = zip(sequences, proposals, logits.split(counts), highest.split(counts), top.split(counts), strict=True)
    for number, (sequence, proposed, rows, high, best) in enumerate(of_each):
        choices, judged = _choose_one(sequence, rows, high, best, proposed, drawn(number), rule)
        parts += [choices.accepted[None], judged, choices.tokens, proposed]
        if sequence.params.logprobs is not None:
            parts.append(_logprobs(rows, choices.tokens, sequence.params.logprobs))
    # The only wait for the device in a cycle. Token ids are exact in float64.
    return _unpack(sequences, counts, torch.cat([part.double() for part in parts]).tolist())


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row [N, V] and the first place where it stands, [N] and [N]; NaN, where there is one."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        rows = logits.numpy()
        places = rows.argmax(-1)  # ten times as fast as torch's
        return torch.from_numpy(rows[np.arange(len(rows)), places]), torch.from_numpy(places)
    values, indices = logits.max(-1)  # argmax is several times slower on a CPU in half precision
    return values, indices


def _choose_one(
    sequence: Sequence, logits: Tensor, highest: Tensor, best: Tensor, proposed: Tensor, q: Tensor | None, rule: VerificationRule
) -> tuple[Choices, Tensor]:
    """What becomes of a sequence's block, and [k + 1] numbers, each finite if what its row was judged by is: its largest logit, or a probability."""
    params = sequence.params
    k, start = len(proposed), len(sequence.tokens)
    if params.greedy:
        if params.processed:
            scores = process_logits(logits, params, sequence.counts, proposed)
            return choose_greedy(scores, proposed), scores.amax(-1)
        agreed = (best[:k] == proposed).long().cumprod(0).sum()
        return Choices(best, agreed), highest
    p = probabilities(logits, params, sequence.counts, proposed)
    if q is None:
        return choose_coupled(p, proposed, uniforms(sequence.seed, sequence.index, start, k + 1, Purpose.TARGET, p.device)), p[:, 0]
    numbers, decide = _NUMBERS[rule], choose_by_rejection if rule == "token" else choose_by_block
    u_accept = numbers(sequence.seed, sequence.index, start, k, Purpose.ACCEPT, p.device)
    u_target = numbers(sequence.seed, sequence.index, start, k + 1, Purpose.TARGET, p.device)
    return decide(p, q, proposed, u_accept, u_target), p[:, 0]


def _logprobs(logits: Tensor, tokens: Tensor, top: int) -> Tensor:
    """[(k + 1) * (1 + 2 top)]: for each row the log-probability of its token, then the top ones and whose they are."""
    logprobs = logits.float().log_softmax(-1)
    values, ids = logprobs.topk(top, dim=-1)
    return torch.cat([logprobs.gather(-1, tokens[:, None]).double(), values.double(), ids.double()], dim=-1).flatten()


def _unpack_greedy(counts: list[int], values: list[float]) -> list[Chosen]:
    """`choose_greedy` for a batch that wants nothing else, on the host, where it costs no operations of the device."""
    total = sum(counts)
    highest, best, proposed = values[:total], values[total : 2 * total], values[2 * total :]
    chosen = []
    row = first = 0
    for count in counts:
        kept = 0
        while kept < count - 1 and best[row + kept] == proposed[first + kept]:
            kept += 1
        chosen.append(_chosen(kept, highest[row : row + count], best[row : row + count], proposed[first : first + count - 1]))
        row, first = row + count, first + count - 1
    return chosen


def _unpack(sequences: ListOf[Sequence], counts: list[int], values: list[float]) -> list[Chosen]:
    left = iter(values)
    chosen = []
    for sequence, count in zip(sequences, counts, strict=True):
        kept, judged, tokens, proposed = (list(islice(left, length)) for length in (1, count, count, count - 1))
        one = _chosen(int(kept[0]), judged, tokens, proposed)
        top = sequence.params.logprobs
        if top is not None:
            rows = [list(islice(left, 1 + 2 * top)) for _ in range(count)]
            logprobs = [
                TokenLogprob(token, r[0], tuple((int(t), v) for v, t in zip(r[1 : 1 + top], r[1 + top :], strict=True)))
                for token, r in zip(one.block, rows, strict=False)
            ]
            one = dataclasses.replace(one, logprobs=logprobs)
        chosen.append(one)
    return chosen


def _chosen(kept: int, judged: list[float], tokens: list[float], proposed: list[float]) -> Chosen:
    made = proposed.index(NOTHING) if NOTHING in proposed else len(proposed)
    # Rows behind the first that the target disagrees with were computed from tokens that it did not say.
    sound = all(math.isfinite(number) for number in judged[: kept + 1])
    return Chosen([int(token) for token in tokens[: kept + 1]], kept, made, sound, None)
