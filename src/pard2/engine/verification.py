"""Which proposed tokens stand: pure rules on one sequence's proposal, ignorant of models, caches and text.

Every rule emits tokens that are distributed as the target's own (METHOD: section 6). In those on tensors,
which keep their result on the device, logits or p have one row more than there are proposals: row i is the
target's after the first i of them. k may be 0.

A place of `proposed` may hold NOTHING, and a row of p or q may be no distribution (NaN, inf: half
precision overflows). From the first such place on nothing is proposed, in every rule, and the block is
judged as one that ends before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pard2.engine.proposal import NOTHING
from pard2.engine.statistics import TokenLogprob

_CHUNK = 128  # tokens that are added up before their sums are searched


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a pass of the target brought one sequence, on the host.

    token_ids: the accepted tokens and the target's own next one.
    path: the accepted nodes of the proposal, from the root's child on; for a chain 0, 1, ..
    proposed: how deep the draft's proposal went, up to its first NOTHING.
    sound: False if the logits that the tokens were chosen by hold NaN or inf, or nothing finite.
    logprobs: of `token_ids`, where they were asked for.
    """

    token_ids: list[int]
    path: list[int]
    proposed: int
    sound: bool
    logprobs: list[TokenLogprob] | None = None

    @property
    def accepted(self) -> int:
        return len(self.path)


def agreeing_path(said: Sequence[float], proposed: Sequence[float], parents: Sequence[int] | None = None) -> list[int]:
    """The accepted nodes: the longest path from the root on which each token is what the
    target says after those before it.

    Greedy decoding, and coupled sampling (METHOD: section 8): `said` is decided without a look at the
    proposal, so any tree whatsoever leaves the text what it is. The host's form, for trees, of
    `choose_greedy` and `choose_coupled`.

    said: [k + 1] the target's tokens, after the newest token of the text and after each node.
    proposed: [k] tokens of the nodes. parents: [k] as in `Proposal`; None for a chain.
    """
    path: list[int] = []
    if parents is None:
        while len(path) < len(proposed) and said[len(path)] == proposed[len(path)]:
            path.append(len(path))
        return path
    at = -1
    for node, parent in enumerate(parents):  # children come after their parents, and siblings differ
        if parent == at and proposed[node] == said[at + 1]:
            path.append(node)
            at = node
    return path


@dataclass(frozen=True)
class Choices:
    """What becomes of a block. Nothing here has waited for the device.

    tokens: [k + 1], of which the first `accepted` are the proposals that stand and the next one is the
        target's own; the rest means nothing.
    accepted: [], 0 to k.
    """

    tokens: Tensor
    accepted: Tensor


def choose_greedy(logits: Tensor, proposed: Tensor) -> Choices:
    """The longest prefix of the proposal that the target's argmax agrees with, and the argmax
    after it (METHOD: section 5).

    logits: [k + 1, V]. proposed: [k].
    """
    return _agreeing(logits.max(-1).indices, proposed)  # argmax is several times slower for bfloat16 on a CPU


def choose_coupled(p: Tensor, proposed: Tensor, u: Tensor) -> Choices:
    """Let each of the target's tokens be decided by its position's number alone; proposals
    stand as far as they equal them.

    p: [k + 1, V].
    proposed: [k].
    u: [k + 1], independent uniforms. What is emitted is always `inverse_cdf(p, u)`, so the text is the same
        for every method, every k and plain decoding, and no proposal whatsoever can bias it. A proposal x
        that does not depend on u stands with probability p(x), and p without x is what is drawn otherwise:
        the rejection rule for argmax drafts (METHOD: section 6).
    """
    return _agreeing(inverse_cdf(p, u), proposed)


def choose_by_rejection(p: Tensor, q: Tensor, proposed: Tensor, u_accept: Tensor, u_target: Tensor) -> Choices:
    """Accept each proposal with min(1, p/q); the first rejected one is replaced by a draw from normalised
    max(p - q, 0) (METHOD: section 6).

    p: [k + 1, V].
    q: [k, V], exactly what `proposed` [k] was drawn from.
    u_accept: [k], u_target: [k + 1], uniforms that neither the proposals nor each other have been drawn with.
        Row k of p gives the bonus where everything stands.
    """
    made = _made(p, q, proposed)
    accepted = (u_accept < _ratios(p, q, proposed)).long().cumprod(0).sum().minimum(made)
    weights = _remainder(p, q, accepted, made, torch.ones((), dtype=torch.float64, device=p.device))
    return _chosen(proposed, accepted, weights, u_target)


def choose_by_block(p: Tensor, q: Tensor, proposed: Tensor, u_accept: Tensor, u_target: Tensor) -> Choices:
    """Block verification (Sun et al. 2024, arXiv 2403.10444): judge sub-blocks as wholes; accepts at
    least as many tokens on average.

    Arguments as in `choose_by_rejection`, but every number of u_accept is looked at, so none of them, nor of
    those that `proposed` was drawn with, may be met again in the next block: see `randomness.block_uniforms`.

    With w_0 = 1 and w_i = min(1, w_{i-1} p(x_i) / q(x_i)): the sub-block x_1..x_i is kept with h_i =
    s_i / (s_i + 1 - w_i), where s_i = sum of max(w_i p - q, 0) over the tokens after it, and h_k = w_k;
    the longest one kept stands, and the token after it is drawn from normalised max(w p - q, 0), or
    from p after the whole block.
    """
    k, made = len(proposed), _made(p, q, proposed)
    # w in closed form: log w_i is the log product so far less the largest that it has been.
    log_product = F.pad(_ratios(p, q, proposed).log().cumsum(0), (1, 0))
    w = (log_product - log_product.cummax(0).values).exp()  # [k + 1]
    inner = w[1:k]
    s = (inner[:, None].to(p.dtype) * p[1:k] - q[1:]).relu_().sum(-1, dtype=torch.float64)
    missing = s + 1 - inner
    h = torch.cat([torch.where(missing > 0, s / missing, 1.0), w[1:][-1:]])  # 0 / 0: w = 1 and p = q, a longer sub-block is then kept for sure
    lengths = torch.arange(1, k + 1, device=p.device)
    h = torch.where(lengths < made, h, w[1:])  # the block may end before its k-th place
    accepted = F.pad(((u_accept < h) & (lengths <= made)) * lengths, (1, 0)).amax()
    weights = _remainder(p, q, accepted, made, w.index_select(0, accepted[None])[0])
    return _chosen(proposed, accepted, weights, u_target)


def inverse_cdf(weights: Tensor, u: Tensor) -> Tensor:
    """The smallest token of each row whose cumulative weight exceeds u times the row's total; [T].

    weights: [T, V], not negative, not all 0, of any sum.
    u: [T] float64 in [0, 1 - 2**-53]. Weights are added up as whole numbers, of at least 2**43 to the
        largest, where the order of adding does not matter: with floats a parallel sum need not rise from
        token to token, and a token of weight 0, such as one cut off by top-p, could be drawn. Sums of chunks
        come first, for speed. A row with NaN gives some token of the vocabulary.
    """
    vocabulary = weights.shape[-1]
    bits = 62 - vocabulary.bit_length()  # so that the total fits in 63
    parts = (weights / weights.amax(-1, keepdim=True)).mul_(2.0**bits).long()
    if vocabulary % _CHUNK:
        parts = F.pad(parts, (0, -vocabulary % _CHUNK))
    parts = parts.unflatten(-1, (-1, _CHUNK))  # [T, chunks, _CHUNK]
    ends = parts.sum(-1).cumsum(-1)
    total = ends[:, -1]
    wanted = (u * total).long()[:, None]  # below the total: u <= 1 - 2**-53 moves it by more than half a float64 step
    chunk = (ends <= wanted).sum(-1, keepdim=True).clamp(max=parts.shape[1] - 1)
    start = F.pad(ends, (1, 0)).gather(1, chunk)
    inside = parts.gather(1, chunk[:, :, None].expand(-1, -1, _CHUNK))[:, 0].cumsum(-1)
    token = chunk * _CHUNK + (inside <= wanted - start).sum(-1, keepdim=True)
    return token[:, 0].clamp(max=vocabulary - 1)


def _agreeing(choices: Tensor, proposed: Tensor) -> Choices:
    return Choices(choices, (choices[:-1] == proposed).long().cumprod(0).sum())


def _made(p: Tensor, q: Tensor, proposed: Tensor) -> Tensor:
    """How many places are proposed at all, []: those before the first that holds NOTHING, or
    whose p or q is no distribution.

    This looks at no proposal that it drops, so the rules stay exact (a block's length may depend on
    what stands before its end).
    """
    sound = (p[:-1].sum(-1) + q.sum(-1)).isfinite() & (proposed != NOTHING)
    return sound.long().cumprod(0).sum()


def _ratios(p: Tensor, q: Tensor, proposed: Tensor) -> Tensor:
    """p(x) / q(x) of each proposal, [k] float64; 0 for one that q says is impossible."""
    tokens = proposed.clamp(min=0)[:, None]
    wanted = p[:-1].gather(1, tokens)[:, 0].double()
    drawn = q.gather(1, tokens)[:, 0].double()
    return torch.where(drawn > 0, wanted / drawn, 0.0)


def _remainder(p: Tensor, q: Tensor, accepted: Tensor, made: Tensor, w: Tensor) -> Tensor:
    """What the token after the accepted ones is drawn from: [V] float64, max(w p - q, 0), or p
    after all that were made."""
    k = len(q)
    row = p.index_select(0, accepted[None])[0].double()
    if k == 0:
        return row
    drawn = q.index_select(0, accepted[None].clamp(max=k - 1))[0].double()
    rest = (w * row - drawn).relu()
    # Nothing remains where p and q are equal, and there no proposal is rejected but by a rounding error: p
    # is then as right as can be.
    return torch.where((accepted < made) & (rest.sum() > 0), rest, row)


def _chosen(proposed: Tensor, accepted: Tensor, weights: Tensor, u_target: Tensor) -> Choices:
    at = accepted[None]
    token = inverse_cdf(weights[None], u_target.index_select(0, at))
    return Choices(F.pad(proposed, (0, 1)).scatter(0, at, token), accepted)
