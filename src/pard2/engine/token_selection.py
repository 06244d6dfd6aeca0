"""What the target says next, for a whole batch: each sequence by its own settings, and one wait for
the device for all of them."""

import dataclasses
import math
from collections.abc import Sequence as ListOf
from itertools import islice

import torch
from torch import Tensor

from pard2.engine.draft_selection import NUMBERS
from pard2.engine.options import VerificationRule
from pard2.engine.processors import largest, probabilities, process_logits
from pard2.engine.proposal import NOTHING, Proposal
from pard2.engine.randomness import Purpose, uniforms
from pard2.engine.sequence import Sequence
from pard2.engine.statistics import TokenLogprob
from pard2.engine.verification import Verification, agreeing_path, choose_by_block, choose_by_rejection, inverse_cdf

_ON_HOST = -1.0  # in place of a number of accepted tokens: the host finds the path


def verify(sequences: ListOf[Sequence], logits: Tensor, proposals: ListOf[Proposal], token_ids: Tensor, rule: VerificationRule) -> list[Verification]:
    """What each sequence says next.

    logits: the target's, [sum of (k + 1), V]: for each sequence a row after its newest
        token and one after each node.
    token_ids: [sum of (k + 1)], for each sequence its newest token, which is not
        looked at, and those of its nodes.
    rule: how drawn proposals are judged.
    """
    highest, top = largest(logits)
    counts = [proposal.num_nodes + 1 for proposal in proposals]
    if all(s.params.greedy and not s.params.processed and not s.may_not_end and s.params.logprobs is None for s in sequences):
        return _unpack_greedy(proposals, counts, torch.cat([highest.double(), top.double(), token_ids.double()]).cpu())
    parts: list[Tensor] = []
    of_each = zip(sequences, proposals, logits.split(counts), highest.split(counts), top.split(counts), strict=True)
    for sequence, proposal, rows, high, best in of_each:
        accepted, judged, tokens = _choose_one(sequence, rows, high, best, proposal, rule)
        parts += [accepted[None], judged, tokens, proposal.token_ids]
        if sequence.params.logprobs is not None:
            parts.append(_logprobs(rows, tokens, sequence.params.logprobs))
    # The only wait for the device in a cycle. Token ids are exact in float64.
    return _unpack(sequences, proposals, torch.cat([part.double() for part in parts]).tolist())


def _choose_one(
    sequence: Sequence, logits: Tensor, highest: Tensor, best: Tensor, proposal: Proposal, rule: VerificationRule
) -> tuple[Tensor, Tensor, Tensor]:
    """What becomes of a sequence's proposal.

    [] how many nodes of a drawn chain stand, or _ON_HOST; [k + 1] numbers, each finite if what its row
    was judged by is: its largest logit, or a probability; [k + 1] the target's tokens (see
    `Choices.tokens` for a drawn chain).
    """
    params, proposed = sequence.params, proposal.token_ids
    on_host = torch.tensor(_ON_HOST, dtype=torch.float64, device=logits.device)
    barred = sequence.barred(proposal.depths)
    if params.greedy:
        if not params.processed and barred is None:
            return on_host, highest, best
        scores = process_logits(logits, params, sequence.counts, proposed, proposal.ancestors(logits.device), barred)
        return on_host, *scores.max(-1)  # argmax is several times slower for bfloat16 on a CPU
    p = probabilities(logits, params, sequence.counts, proposed, proposal.ancestors(logits.device), barred)
    k, start = proposal.num_nodes, len(sequence.tokens)
    if proposal.q is None:
        # A position's number decides its token, at whatever node (`choose_coupled`).
        depths = proposal.depths
        u = uniforms(sequence.seed, sequence.index, start, max(depths) + 1, Purpose.TARGET)[depths]
        return on_host, p[:, 0], inverse_cdf(p, u.to(p.device))
    numbers, decide = NUMBERS[rule], choose_by_rejection if rule == "token" else choose_by_block
    u_accept = numbers(sequence.seed, sequence.index, start, k, Purpose.ACCEPT, p.device)
    u_target = numbers(sequence.seed, sequence.index, start, k + 1, Purpose.TARGET, p.device)
    choices = decide(p, proposal.q, proposed, u_accept, u_target)
    return choices.accepted, p[:, 0], choices.tokens


def _logprobs(logits: Tensor, tokens: Tensor, top: int) -> Tensor:
    """[(k + 1) * (1 + 2 top)]: for each row the log-probability of its token, then the
    top ones and whose they are."""
    logprobs = logits.float().log_softmax(-1)
    values, ids = logprobs.topk(top, dim=-1)
    return torch.cat([logprobs.gather(-1, tokens[:, None]).double(), values.double(), ids.double()], dim=-1).flatten()


def _unpack_greedy(proposals: ListOf[Proposal], counts: list[int], values: Tensor) -> list[Verification]:
    """Of a batch that wants nothing else: three numbers for each row."""
    judged, said, proposed = values.view(3, -1)
    finite, said_ids, proposed_ids = judged.isfinite().tolist(), said.long().tolist(), proposed.long().tolist()
    verified = []
    row = 0
    for proposal, count in zip(proposals, counts, strict=True):
        end = row + count
        mine, guesses = said_ids[row:end], proposed_ids[row + 1 : end]
        verified.append(_verification(proposal, agreeing_path(mine, guesses, proposal.parents), finite[row:end], mine, guesses))
        row = end
    return verified


def _unpack(sequences: ListOf[Sequence], proposals: ListOf[Proposal], values: list[float]) -> list[Verification]:
    left = iter(values)
    verified = []
    for sequence, proposal in zip(sequences, proposals, strict=True):
        count = proposal.num_nodes + 1
        kept, judged, said, proposed = (list(islice(left, length)) for length in (1, count, count, count - 1))
        said_ids, proposed_ids = list(map(int, said)), list(map(int, proposed))
        path = agreeing_path(said_ids, proposed_ids, proposal.parents) if kept[0] == _ON_HOST else list(range(int(kept[0])))
        one = _verification(proposal, path, list(map(math.isfinite, judged)), said_ids, proposed_ids)
        top = sequence.params.logprobs
        if top is not None:
            rows = [list(islice(left, 1 + 2 * top)) for _ in range(count)]
            logprobs = [
                TokenLogprob(token, r[0], tuple((int(t), v) for v, t in zip(r[1 : 1 + top], r[1 + top :], strict=True)))
                for token, r in zip(one.token_ids, [rows[0], *(rows[node + 1] for node in path)], strict=True)
            ]
            one = dataclasses.replace(one, logprobs=logprobs)
        verified.append(one)
    return verified


def _verification(proposal: Proposal, path: list[int], finite: list[bool], said: list[int], proposed: list[int]) -> Verification:
    """finite: [k + 1], whether each row of logits is sound.

    Rows beside the path were computed from tokens that the target did not say, and do not count.
    """
    depth = max(proposal.depths) if proposal.parents is not None else len(proposed)
    if proposal.parents is None and NOTHING in proposed:
        depth = proposed.index(NOTHING)
    rows = [0, *(node + 1 for node in path)]
    tokens, sound = [*(proposed[node] for node in path), said[rows[-1]]], all(finite[row] for row in rows)
    return Verification(token_ids=tokens, path=path, proposed=depth, sound=sound)
