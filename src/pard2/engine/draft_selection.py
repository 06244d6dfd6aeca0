"""Proposals from a draft's logits: its most probable tokens, drawn ones, or the most probable tree.

The one way from any draft to any rule. A request's own processors (bias, penalties, and where tokens
are drawn, temperature and cuts) change what a draft proposes as they change what the target says:
penalties count the text so far and the guesses on the way to a place. Whatever is proposed, the
rules keep the text what it is.
"""

import dataclasses
import math
from collections.abc import Sequence as ListOf
from itertools import takewhile

import torch
import torch.nn.functional as F
from torch import Tensor

from pard2.engine.best_first import Candidates, Tree, best_first
from pard2.engine.dynamic_tree import DynamicTree
from pard2.engine.options import DraftSampling, VerificationRule
from pard2.engine.processors import largest, most_probable, probabilities, process_logits
from pard2.engine.proposal import NOTHING, Proposal
from pard2.engine.randomness import Purpose, block_uniforms, uniforms
from pard2.engine.sampling import SamplingParams
from pard2.engine.sequence import Sequence
from pard2.engine.verification import inverse_cdf

# Block verification drops proposals for their values, so no later block may meet the
# numbers that they were drawn by.
NUMBERS = {"token": uniforms, "block": block_uniforms}

_MOST_CANDIDATES = 32  # of a level of a tree; a tree of 60 nodes has been seen to use 12


class DraftSelector:
    """Takes the guesses of one cycle, of several sequences.

    Logits that are no numbers (NaN, inf) guess NOTHING.

    sequences: whose guesses they are, numbered from 0.
    sampling: what is proposed to those that sample.
    rule: what drawn guesses will be judged by.
    vocab_size: the target's; a draft may know fewer tokens.
    tree_nodes: for each sequence the nodes of its tree at most; 0 for a chain. None: chains for all.
    """

    def __init__(
        self, sequences: ListOf[Sequence], sampling: DraftSampling, rule: VerificationRule, vocab_size: int, tree_nodes: ListOf[int] | None = None
    ) -> None:
        self._sequences = sequences
        self._sampling = sampling
        self._numbers = NUMBERS[rule]
        self._vocab_size = vocab_size
        self._tree_nodes = tree_nodes
        self._token_ids: Tensor | None = None
        self._guesses: list[list[Tensor]] = [[] for _ in sequences]  # by sequence, [1] or more tokens at a time
        self._drawn: list[list[Tensor]] = [[] for _ in sequences]

    def restrict(self, token_ids: Tensor) -> None:
        """From now on logits are those of these tokens, [D], alone: whole rows of a large vocabulary would
        cost more than a small draft's pass."""
        self._token_ids = token_ids

    # --- a draft that guesses one token after the other -------------------------------------------

    def next(self, logits: Tensor, numbers: ListOf[int]) -> Tensor:
        """The next guess of each of these sequences, [N]. logits: [N, vocabulary]."""
        tokens = _argmax(logits)
        if self._token_ids is not None:
            tokens = torch.where(tokens < 0, tokens, self._token_ids[tokens])
        for row, number in enumerate(numbers):
            if self._is_special(number):
                tokens[row : row + 1] = self._guess(number, logits[row : row + 1])
            else:
                self._guesses[number].append(tokens[row : row + 1])
        return tokens

    def chains(self, device: torch.device) -> list[Proposal]:
        """What each sequence was given by `next`."""
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        return [self._chain(number, nothing) for number in range(len(self._sequences))]

    def nodes(self, number: int) -> int:
        """Nodes of a sequence's tree at most; 0 where it is to be a chain."""
        return 0 if self._tree_nodes is None else self._tree_nodes[number]

    def children(self, logits: Tensor, numbers: ListOf[int], trees: ListOf[DynamicTree], depth: int, width: int) -> list[list[Candidates]]:
        """What may follow the frontier of each of these sequences' trees: the most probable tokens, at most
        `width`.

        logits: [all frontiers, vocabulary].
        depth: of the frontiers' nodes; 0 for roots.
        """
        counts = [len(tree.frontier) for tree in trees]
        names = self._token_ids
        if any(map(self._is_special, numbers)):  # what is asked for by a token's id needs the target's
            logits, names = self._padded(logits), None
        scores = []
        for number, tree, mine in zip(numbers, trees, logits.split(counts), strict=True):
            sequence = self._sequences[number]
            before = torch.tensor(tree.token_ids, dtype=torch.long, device=logits.device)
            on_path = torch.from_numpy(tree.paths()).to(logits.device)
            barred = sequence.barred([depth] * len(mine))
            scores.append(process_logits(mine, sequence.params, sequence.counts, before, on_path, barred))
        rows = iter(_listed(torch.cat(scores), width, names)[2])
        return [[next(rows) for _ in range(count)] for count in counts]

    @staticmethod
    def proposal(tree: Tree, device: torch.device) -> Proposal:
        """A tree as what is proposed."""
        token_ids = torch.tensor(tree.token_ids, dtype=torch.long, device=device)
        return Proposal(token_ids=token_ids, parents=tree.parents, probabilities=tree.probabilities)

    # --- a draft that guesses all at once ---------------------------------------------------------

    def parallel(self, logits: Tensor, counts: ListOf[int]) -> list[Proposal]:
        """Each sequence's proposal.

        logits: [sum of counts, vocabulary], `counts` rows of each sequence, for depths 1, 2, ..
        """
        tokens = _argmax(logits).split(list(counts))
        proposals = []
        row = 0
        for number, (count, best) in enumerate(zip(counts, tokens, strict=True)):
            mine = logits[row : row + count]
            row += count
            if count and self._tree_nodes is not None and self._tree_nodes[number] > 0:
                proposals.append(self._tree(number, mine, self._tree_nodes[number]))
            elif count and self._is_special(number):
                # Penalties depend on the guesses before; all else can be taken at once.
                step = 1 if self._sequences[number].params.penalised else count
                for start in range(0, count, step):
                    self._guess(number, mine[start : start + step])
                proposals.append(self._chain(number, best[:0]))
            else:
                proposals.append(Proposal(token_ids=best))
        return proposals

    def _is_special(self, number: int) -> bool:
        """Whether more is to be done for a sequence than to take each row's largest logit."""
        sequence = self._sequences[number]
        params = sequence.params
        return params.logit_bias is not None or params.penalised or sequence.may_not_end or (self._sampling == "sampled" and not params.greedy)

    def _guess(self, number: int, logits: Tensor) -> Tensor:
        """Guesses [N] by logits [N, vocabulary] of a sequence's next places; of one place alone
        where there are penalties."""
        sequence = self._sequences[number]
        before = torch.cat(self._guesses[number]) if self._guesses[number] else torch.zeros(0, dtype=torch.long, device=logits.device)
        on_path = torch.ones(len(logits), len(before), dtype=torch.bool, device=logits.device)
        logits, barred = self._padded(logits), sequence.barred(range(len(before), len(before) + len(logits)))
        if self._sampling == "greedy" or sequence.params.greedy:
            tokens = _argmax(process_logits(logits, _uncut(sequence.params), sequence.counts, before, on_path, barred))
        else:
            q = probabilities(logits, sequence.params, sequence.counts, before, on_path, barred)
            u = self._numbers(sequence.seed, sequence.index, len(sequence.tokens), len(before) + len(q), Purpose.DRAFT, q.device)
            # Softmax makes a whole row NaN of one number that is none; dividing by the
            # temperature may have overflowed, too.
            tokens = _or_nothing(inverse_cdf(q, u[len(before) :]), q[:, 0])
            self._drawn[number].append(q)
        self._guesses[number].append(tokens)
        return tokens

    def _chain(self, number: int, nothing: Tensor) -> Proposal:
        tokens = torch.cat(self._guesses[number]) if self._guesses[number] else nothing
        return Proposal(token_ids=tokens, q=torch.cat(self._drawn[number]) if self._drawn[number] else None)

    def _padded(self, logits: Tensor) -> Tensor:
        """[N, the target's vocabulary]: a bias or a penalty may be on a token
        that the draft does not know."""
        if self._token_ids is not None:
            whole = logits.new_full((len(logits), self._vocab_size), -torch.inf)
            return whole.index_copy_(-1, self._token_ids, logits)
        missing = self._vocab_size - logits.shape[-1]
        return F.pad(logits, (0, missing), value=-torch.inf) if missing else logits

    # --- trees ------------------------------------------------------------------------------------

    def _tree(self, number: int, logits: Tensor, nodes: int) -> Proposal:
        """The most probable tree by logits [depths, vocabulary]."""
        sequence = self._sequences[number]
        params = sequence.params
        barred = sequence.barred(range(len(logits)))
        scores = process_logits(self._padded(logits), params, sequence.counts, logits.new_zeros(0, dtype=torch.long), barred=barred)
        ids, totals, rows = _listed(scores, min(nodes, _MOST_CANDIDATES))
        levels = [*takewhile(bool, rows)]  # from one that is no distribution on, the draft proposes NOTHING
        penalise = _PathPenalty(sequence, ids, totals) if params.penalised and levels else None
        return self.proposal(best_first(levels, nodes, penalise), logits.device)


def _listed(scores: Tensor, count: int, names: Tensor | None = None) -> tuple[Tensor, list[float], list[Candidates]]:
    """The most probable tokens by scores [N, vocabulary], at most `count` of each row: ids [N, M], the
    logarithm of each row's sum of exp(score), and the candidates; none for a row that is no distribution.

    names: [vocabulary] the ids of its tokens; None where they are 0, 1, ..
    """
    values, ids = most_probable(scores, min(count, scores.shape[-1]))
    if names is not None:
        ids = names[ids]
    total = scores.logsumexp(-1, keepdim=True)
    width = values.shape[1]
    # One wait for the device. Token ids are exact in float64.
    packed = torch.cat([total.double(), values.double() - total.double(), ids.double()], dim=1).tolist()
    listed: list[Candidates] = [
        [(int(token), logprob) for logprob, token in zip(row[1 : 1 + width], row[1 + width :], strict=True)] if math.isfinite(row[0]) else []
        for row in packed
    ]
    return ids, [row[0] for row in packed], listed


class _PathPenalty:
    """The candidates of a level, penalised for the tokens of the path before them as the target's will be."""

    def __init__(self, sequence: Sequence, ids: Tensor, totals: list[float]) -> None:
        """ids: [depths, M] candidates of each level.

        totals: of each level, the logarithm of its sum of exp(score).
        """
        assert sequence.counts is not None
        self._params = sequence.params
        flat = ids.flatten()
        self._seen = dict(zip(flat.tolist(), sequence.counts.seen[flat].tolist(), strict=True))
        self._said = dict(zip(flat.tolist(), sequence.counts.said[flat].tolist(), strict=True))
        self._totals = totals

    def __call__(self, candidates: Candidates, path: list[int]) -> Candidates:
        on_path = {token: path.count(token) for token in set(path)}
        if not any(token in on_path for token, _ in candidates):
            return candidates
        total = self._totals[len(path)]
        changed = [(token, self._score(token, logprob + total, on_path.get(token, 0)) - total) for token, logprob in candidates]
        return sorted(changed, key=lambda candidate: -candidate[1])

    def _score(self, token: int, score: float, times: int) -> float:
        """A candidate's score, penalised for the text so far already, after
        `times` more of it on the path."""
        params = self._params
        if times == 0:
            return score
        heat = params.temperature or 1.0
        score *= heat
        said, seen = self._said[token], self._seen[token]
        first = said == 0
        if not seen:
            score = score * params.repetition_penalty if score < 0 else score / params.repetition_penalty
        return (score - params.presence_penalty * first - params.frequency_penalty * times) / heat


def _uncut(params: SamplingParams) -> SamplingParams:
    """What the most probable token depends on: neither temperature nor what cuts improbable tokens off."""
    return dataclasses.replace(params, temperature=0.0)


def _argmax(logits: Tensor) -> Tensor:
    highest, tokens = largest(logits)
    return _or_nothing(tokens, highest)


def _or_nothing(tokens: Tensor, numbers: Tensor) -> Tensor:
    """The tokens [N], and NOTHING where the number [N] that comes with one is NaN or infinite."""
    if numbers.is_cpu and all(map(math.isfinite, numbers.tolist())):  # costs a fortieth of the operations below
        return tokens
    return torch.where(numbers.isfinite(), tokens, NOTHING)
