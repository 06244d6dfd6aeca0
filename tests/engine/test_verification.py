"""Acceptance rules: the distribution of what they emit, measured exactly, against the target's own.

A rule is a step function of its uniforms, so its probabilities are lengths of intervals. These are found by
bisection of the rule as it is called (to 2**-36), summed over all proposals, and compared with products of p:
nothing is sampled. How the uniforms act together is checked against plain loops.
"""

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

from pard2.engine.randomness import Purpose, uniforms
from pard2.engine.verification import Choices, choose_by_block, choose_by_rejection, choose_coupled, choose_greedy, inverse_cdf

TOP = 1 - 2**-53  # the largest uniform there is
Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Choices]
RULES: list[Rule] = [choose_by_rejection, choose_by_block]


# --- tiny targets and drafts: a random distribution after every context


def random_rows(shape: tuple[int, ...], seed: int, zeros: float = 0.0) -> Tensor:
    """Distributions [.., V], float64; about the share `zeros` of their tokens impossible."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(shape, generator=generator, dtype=torch.float64) ** 2 + 0.01
    weights *= torch.rand(shape, generator=generator, dtype=torch.float64) >= zeros
    weights[..., 0] += (weights.sum(-1) == 0).double()
    return weights / weights.sum(-1, keepdim=True)


class World:
    """p and q after every context of up to k tokens.

    proposals: [N, k], all there are; p: [N, k + 1, V] and q: [N, k, V] along each; chance: [N].
    """

    def __init__(self, vocab: int, k: int, seed: int, kind: str = "dense") -> None:
        zeros = 0.4 if kind == "zeros" else 0.0
        self.vocab, self.k = vocab, k
        contexts = [c for length in range(k + 1) for c in itertools.product(range(vocab), repeat=length)]
        self.target = dict(zip(contexts, random_rows((len(contexts), vocab), seed, zeros), strict=True))
        draft = dict(zip(contexts, random_rows((len(contexts), vocab), seed + 1000, zeros), strict=True))
        if kind == "equal":
            draft = self.target
        if kind == "one-hot":
            draft = {c: torch.eye(vocab, dtype=torch.float64)[int(row.argmax())] for c, row in draft.items()}
        if kind == "independent":  # slots of a parallel draft: q does not depend on the other proposals
            draft = {c: draft[(0,) * len(c)] for c in contexts}
        blocks = list(itertools.product(range(vocab), repeat=k))
        self.proposals = torch.tensor(blocks).view(len(blocks), k)
        self.p = torch.stack([torch.stack([self.target[x[:i]] for i in range(k + 1)]) for x in blocks])
        self.q = torch.stack([torch.stack([draft[x[:i]] for i in range(k)]) for x in blocks])
        self.chance = self.q.gather(2, self.proposals[:, :, None]).prod(1)[:, 0]
        if kind == "broken":  # after some contexts the draft is no distribution, and what it draws there does not matter
            for n, x in enumerate(blocks):
                for i in range(k):
                    number = contexts.index(x[:i])
                    if number % 3 == 1:
                        self.q[n, i, number % vocab :] = (math.nan, math.inf)[number % 2]

    def says(self, text: tuple[int, ...]) -> float:
        """The target's probability of a text."""
        return math.prod(float(self.target[text[:i]][token]) for i, token in enumerate(text))


WORLDS = [(vocab, k, kind) for vocab, k in ((3, 1), (4, 2), (3, 3)) for kind in ("dense", "zeros", "equal", "one-hot", "independent", "broken")]


# --- exact measurement


def bisect(holds: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The u in [0, 1] up to which `holds` is true, for each cell."""
    low, high = torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
    for _ in range(36):
        middle = (low + high) / 2
        true = holds(middle)
        low, high = torch.where(true, middle, low), torch.where(true, high, middle)
    return low


@functools.cache
def world_of(vocab: int, k: int, kind: str = "dense") -> World:
    return World(vocab, k, 10 * vocab + k, kind)


@functools.cache
def measure(rule: Rule, world: World) -> tuple[Tensor, Tensor]:
    """After each proposal: the chance of each number of accepted tokens, [N, k + 1], and of the token
    after them, [N, k + 1, V]."""
    n, k, vocab = len(world.proposals), world.k, world.vocab
    by_block = rule is choose_by_block

    def run(u_accept: Tensor, u_target: Tensor) -> tuple[Tensor, Tensor]:
        """u_accept: [N, M, k]; u_target: [N, M]. Accepted and the token after, [N, M] each."""

        def one(p: Tensor, q: Tensor, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            choices = rule(p, q, x, u, v.expand(k + 1))
            return choices.accepted, choices.tokens.gather(0, choices.accepted[None])[0]

        return vmap(vmap(one, in_dims=(None, None, None, 0, 0)))(world.p, world.q, world.proposals, u_accept, u_target)

    # Rejection reads its uniforms up to the first that rejects; block verification wants
    # the last one that accepts.
    others = TOP if by_block else 0.0
    position = torch.arange(k)
    alone = torch.eye(k, dtype=torch.bool)[None]
    half = torch.full((n, k), 0.5, dtype=torch.float64)
    stands = bisect(lambda u: run(torch.where(alone, u[:, :, None], others), half)[0] > position, (n, k))
    if by_block:
        later_fail = (1 - stands).flip(1).cumprod(1).flip(1)
        accepted = torch.cat([torch.ones(n, 1), stands], 1) * torch.cat([later_fail, torch.ones(n, 1)], 1)
    else:
        reach = torch.cat([torch.ones(n, 1), stands.cumprod(1)], 1)
        accepted = reach * torch.cat([1 - stands, torch.ones(n, 1)], 1)

    # Uniforms that force each number of accepted tokens, where it can happen at all.
    forced = torch.where(position < torch.arange(k + 1)[:, None], 0.0, TOP).double()  # [k + 1, k]
    u_accept = forced.repeat_interleave(vocab - 1, 0).expand(n, -1, -1)
    limit = torch.arange(vocab - 1).repeat(k + 1)
    below = bisect(lambda u: run(u_accept, u)[1] <= limit, (n, len(limit))).view(n, k + 1, vocab - 1)
    edges = torch.cat([torch.zeros(n, k + 1, 1), below, torch.ones(n, k + 1, 1)], 2)
    reached, _ = run(u_accept, torch.full((n, len(limit)), 0.5, dtype=torch.float64))
    possible = reached.view(n, k + 1, vocab - 1)[:, :, 0] == torch.arange(k + 1)
    assert bool((possible | (accepted < 1e-9)).all())
    return accepted, edges.diff(dim=2)


def emitted(rule: Rule, world: World) -> dict[tuple[int, ...], float]:
    """The chance of each block that the rule emits."""
    accepted, after = measure(rule, world)
    blocks: dict[tuple[int, ...], float] = {}
    for n, x in enumerate(world.proposals.tolist()):
        for length, token in itertools.product(range(world.k + 1), range(world.vocab)):
            block = (*x[:length], token)
            blocks[block] = blocks.get(block, 0.0) + float(world.chance[n] * accepted[n, length] * after[n, length, token])
    return blocks


def expected_accepted(rule: Rule, world: World) -> float:
    accepted, _ = measure(rule, world)
    return float((world.chance[:, None] * accepted * torch.arange(world.k + 1)).sum())


def assert_the_targets_own(blocks: dict[tuple[int, ...], float], world: World) -> None:
    """Blocks, each continued by the target itself, are distributed as the target's texts of k + 1 tokens."""
    for text in itertools.product(range(world.vocab), repeat=world.k + 1):
        total = 0.0
        for length in range(1, world.k + 2):
            total += blocks.get(text[:length], 0.0) * math.prod(float(world.target[text[:i]][text[i]]) for i in range(length, world.k + 1))
        assert total == pytest.approx(world.says(text), abs=1e-9), text


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("vocab", "k", "kind"), WORLDS)
def test_emitted_texts_are_distributed_as_the_targets_own(rule, vocab, k, kind):
    world = world_of(vocab, k, kind)
    blocks = emitted(rule, world)
    assert sum(blocks.values()) == pytest.approx(1)
    assert_the_targets_own(blocks, world)


def test_the_measurement_would_notice_a_bonus_drawn_after_a_rejection():
    def careless(p: Tensor, q: Tensor, x: Tensor, u: Tensor, v: Tensor) -> Choices:
        accepted = choose_by_rejection(p, q, x, u, v).accepted
        return Choices(x.new_zeros(len(x) + 1).scatter(0, accepted[None], inverse_cdf(p, v).gather(0, accepted[None])), accepted)

    world = world_of(3, 2)
    with pytest.raises(AssertionError):
        assert_the_targets_own(emitted(careless, world), world)


@pytest.mark.parametrize(("vocab", "k", "kind"), WORLDS)
def test_block_verification_never_accepts_fewer_tokens(vocab, k, kind):
    world = world_of(vocab, k, kind)
    gain = expected_accepted(choose_by_block, world) - expected_accepted(choose_by_rejection, world)
    assert gain > -1e-9
    if kind in ("one-hot", "equal") or k == 1:  # then both are the same rule
        assert gain < 1e-9
    elif kind in ("dense", "independent"):
        assert gain > 1e-4


def test_what_block_verification_dropped_must_not_meet_the_same_numbers_again():
    """A dropped proposal is still a fresh draw from q under token verification; under block verification it
    was dropped for its value."""
    world = world_of(3, 2, "independent")
    for rule, fresh in ((choose_by_rejection, True), (choose_by_block, False)):
        accepted, _ = measure(rule, world)
        first_dropped = world.chance * accepted[:, 0]
        second = torch.zeros(3, dtype=torch.float64).index_add_(0, world.proposals[:, 1], first_dropped) / first_dropped.sum()
        assert bool(((second - world.q[0, 1]).abs().max() < 1e-9) == fresh)


def test_one_generator_for_draft_and_residual_draws_would_be_lossy():
    p = torch.tensor([[1, 1, 1, 1], [4, 0, 0, 0]], dtype=torch.float64) / 4
    q = torch.tensor([[3, 0, 1, 0]], dtype=torch.float64) / 4
    grid = (torch.arange(12, dtype=torch.float64) + 0.5) / 12  # every threshold that quarters can make is a multiple of 1/12

    def first(u_draft: Tensor, u_accept: Tensor, u_target: Tensor) -> Tensor:
        return choose_by_rejection(p, q, inverse_cdf(q, u_draft[None]), u_accept[None], u_target.expand(2)).tokens[0]

    def distribution(*axes: Tensor) -> Tensor:
        return torch.bincount(vmap(first)(*[axis.flatten() for axis in axes]), minlength=4) / axes[0].numel()

    torch.testing.assert_close(distribution(*torch.meshgrid(grid, grid, grid, indexing="ij")), p[0].float())
    draft, accept = torch.meshgrid(grid, grid, indexing="ij")
    assert (distribution(draft, accept, draft) - p[0]).abs().max() > 0.05
    assert (distribution(draft, draft, accept) - p[0]).abs().max() > 0.05


# --- coupled choices


def sixths(world_seed: int, contexts: list[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
    generator = torch.Generator().manual_seed(world_seed)
    cuts = torch.randint(0, 7, (len(contexts), 2), generator=generator).sort(-1).values
    edges = torch.cat([torch.zeros(len(contexts), 1), cuts, torch.full((len(contexts), 1), 6)], 1)
    return dict(zip(contexts, edges.diff(dim=1).double() / 6, strict=True))


@pytest.mark.parametrize("peeks", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_coupled_texts_are_the_targets_own_even_if_the_draft_knows_the_numbers(peeks, seed):
    k = 2
    contexts = [c for length in range(k + 1) for c in itertools.product(range(3), repeat=length)]
    target, draft = sixths(seed, contexts), sixths(seed + 100, contexts)
    grid = (torch.arange(6, dtype=torch.float64) + 0.5) / 6
    blocks: dict[tuple[int, ...], float] = {}
    accepted = 0.0
    for cell in itertools.product(grid.tolist(), repeat=k + 1):
        u = torch.tensor(cell, dtype=torch.float64)
        x: tuple[int, ...] = ()
        for i in range(k):
            x += (int(inverse_cdf(draft[x][None], u[i : i + 1] if peeks else torch.tensor([0.5], dtype=torch.float64))),)
        choices = choose_coupled(torch.stack([target[x[:i]] for i in range(k + 1)]), torch.tensor(x), u)
        block = tuple(choices.tokens.tolist()[: int(choices.accepted) + 1])
        blocks[block] = blocks.get(block, 0.0) + 6.0 ** -(k + 1)
        accepted += float(choices.accepted) * 6.0 ** -(k + 1)
    world = World(3, k, 0)
    world.target = target
    assert_the_targets_own(blocks, world)
    if not peeks:  # the rejection rule for one-hot q: proposal i stands with p(x_i) once those before it do
        assert accepted == pytest.approx(sum(world.says(x[:i]) for i in range(1, k + 1)))


@pytest.mark.parametrize("ks", [[0], [1], [2], [5], [0, 3, 1]])
def test_a_seeded_text_does_not_depend_on_the_number_of_proposals(ks):
    vocab, length = 5, 40
    target = random_rows((vocab, vocab), 3)  # after each token
    lengths, text = itertools.cycle(ks), [0]
    while len(text) <= length:
        proposed = torch.tensor([int(target[text[-1]].argmax())] * next(lengths), dtype=torch.long)
        p = target[torch.cat([torch.tensor(text[-1:]), proposed])]
        choices = choose_coupled(p, proposed, uniforms(11, 0, len(text), len(proposed) + 1, Purpose.TARGET))
        text += choices.tokens.tolist()[: int(choices.accepted) + 1]
    plain = [0]
    for number in uniforms(11, 0, 1, length, Purpose.TARGET):
        plain.append(int(inverse_cdf(target[plain[-1]][None], number[None])))
    assert text[: length + 1] == plain


# --- against loops that a person would write


def loop_greedy(choices: list[int], proposed: list[int]) -> list[int]:
    kept = list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(choices, proposed, strict=False)))
    return choices[: len(kept) + 1]


@given(st.integers(0, 6).flatmap(lambda k: st.tuples(*[st.lists(st.integers(0, 3), min_size=n, max_size=n) for n in (k + 1, k)])))
def test_longest_agreeing_prefix_then_the_targets_own(case):
    choices, proposed = case
    rows = torch.nn.functional.one_hot(torch.tensor(choices), 4).float()
    guesses = torch.tensor(proposed, dtype=torch.long)
    u = torch.full((len(choices),), 0.5, dtype=torch.float64)
    for result in (choose_greedy(rows, guesses), choose_coupled(rows, guesses, u)):
        assert result.tokens.shape == (len(proposed) + 1,)
        assert result.tokens.tolist()[: int(result.accepted) + 1] == loop_greedy(choices, proposed)


def test_a_later_agreement_does_not_heal_a_rejection():
    result = choose_greedy(torch.nn.functional.one_hot(torch.tensor([1, 2, 3, 0]), 4).float(), torch.tensor([1, 0, 3]))
    assert (int(result.accepted), result.tokens.tolist()[:2]) == (1, [1, 2])


def pick(weights: list[float], u: float) -> int:
    """First token with more than u of the weight up to and with it."""
    return next(v for v in range(len(weights)) if math.fsum(weights[: v + 1]) > u * math.fsum(weights))


def loop_rejection(p: list[list[float]], q: list[list[float]], x: list[int], u: list[float], v: list[float]) -> list[int]:
    for i, token in enumerate(x):
        if not u[i] < p[i][token] / q[i][token]:
            return [*x[:i], pick([max(a - b, 0) for a, b in zip(p[i], q[i], strict=True)], v[i])]
    return [*x, pick(p[-1], v[-1])]


def loop_block(p: list[list[float]], q: list[list[float]], x: list[int], u: list[float], v: list[float]) -> list[int]:
    k, w, kept, kept_w = len(x), 1.0, 0, 1.0
    for i, token in enumerate(x, 1):
        w = min(1.0, w * p[i - 1][token] / q[i - 1][token])
        h = w
        if i < k:
            s = sum(max(w * a - b, 0) for a, b in zip(p[i], q[i], strict=True))
            h = s / (s + 1 - w)
        if u[i - 1] < h:
            kept, kept_w = i, w
    rest = p[k] if kept == k else [max(kept_w * a - b, 0) for a, b in zip(p[kept], q[kept], strict=True)]
    return [*x[:kept], pick(rest, v[kept])]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 5),
    st.integers(2, 6),
    st.integers(0, 10**6),
    st.sampled_from([(choose_by_rejection, loop_rejection), (choose_by_block, loop_block)]),
)
def test_rules_agree_with_plain_loops(k, vocab, seed, pair):
    rule, loop = pair
    rows = random_rows((2 * k + 1, vocab), seed)
    p, q = rows[: k + 1], rows[k + 1 :]
    proposed = q.argmax(-1)  # likely, so that ratios lie on both sides of 1
    u = uniforms(seed, 0, 0, k, Purpose.ACCEPT)
    v = uniforms(seed, 0, 0, k + 1, Purpose.TARGET)
    result = rule(p, q, proposed, u, v)
    assert result.tokens.shape == (k + 1,)
    assert result.tokens.tolist()[: int(result.accepted) + 1] == loop(p.tolist(), q.tolist(), proposed.tolist(), u.tolist(), v.tolist())


# --- edges


@pytest.mark.parametrize("rule", RULES)
def test_a_rejection_that_only_rounding_explains_is_replaced_by_a_token_the_target_can_say(rule):
    q = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    p = torch.cat([q * (1 - 1e-9), q])  # below q everywhere: nothing remains
    v = torch.tensor([0.75, 0.0], dtype=torch.float64)
    result = rule(p, q, torch.tensor([0]), torch.tensor([TOP], dtype=torch.float64), v)
    assert (int(result.accepted), result.tokens.tolist()[0]) == (0, 1)


@pytest.mark.parametrize("rule", RULES)
def test_a_proposal_that_the_target_cannot_say_is_rejected_even_by_the_smallest_number(rule):
    p, q = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    zeros = torch.zeros(3, dtype=torch.float64)
    result = rule(p, q, torch.tensor([0, 0]), zeros[:2], zeros)
    assert (int(result.accepted), result.tokens.tolist()[0]) == (0, 1)


@pytest.mark.parametrize("rule", RULES)
def test_a_proposal_that_the_draft_could_not_draw_is_rejected_without_dividing_by_zero(rule):
    p, q = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.5, 0.5]])
    zeros = torch.zeros(2, dtype=torch.float64)
    result = rule(p, q, torch.tensor([0]), zeros[:1], zeros)
    assert (int(result.accepted), result.tokens.tolist()[0]) == (0, 0)


@pytest.mark.parametrize("k", [0, 1, 4])
def test_no_rule_makes_the_host_wait(k):
    with FakeTensorMode():  # raises where a value would be needed
        p, q, x = torch.rand(k + 1, 300), torch.rand(k, 300), torch.zeros(k, dtype=torch.long)
        u, v = torch.rand(k, dtype=torch.float64), torch.rand(k + 1, dtype=torch.float64)
        for result in (choose_greedy(p, x), choose_coupled(p, x, v), choose_by_rejection(p, q, x, u, v), choose_by_block(p, q, x, u, v)):
            assert result.tokens.shape == (k + 1,) and result.accepted.shape == ()


def test_the_proposal_itself_is_not_overwritten():
    proposed = torch.tensor([0, 1])
    p, q = random_rows((3, 3), 1), random_rows((2, 3), 2)
    u = torch.full((3,), TOP, dtype=torch.float64)
    for rule in RULES:
        rule(p, q, proposed, u[:2], u)
    assert proposed.tolist() == [0, 1]


# --- inverse_cdf


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([1, 2, 127, 128, 129, 256, 300]),
    st.integers(0, 10**6),
    st.floats(0, TOP),
    st.sampled_from([1e-6, 1.0, 1e6]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_tokens_are_those_of_a_plain_sum_across_the_borders_of_chunks(vocab, seed, u, scale, dtype):
    weights = (random_rows((2, vocab), seed, zeros=0.7) * scale).to(dtype)
    tokens = inverse_cdf(weights, torch.tensor([u, TOP], dtype=torch.float64))
    assert tokens.tolist()[1] == int(weights[1].nonzero()[-1])
    token, row = int(tokens[0]), weights[0].double()
    total = float(row.sum())
    assert row[token] > 0
    assert float(row[:token].sum()) <= u * total + 1e-7 * total
    assert float(row[: token + 1].sum()) > u * total - 1e-7 * total


@pytest.mark.parametrize("u", [0.0, 1 / 3, 2 / 3, TOP])
def test_a_token_of_no_weight_is_never_drawn(u):
    weights = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]])
    assert inverse_cdf(weights, torch.tensor([u], dtype=torch.float64)).item() in (1, 3, 5)
    far = torch.zeros(1, 1000)
    far[0, [130, 700]] = 1e-30
    assert inverse_cdf(far, torch.tensor([u], dtype=torch.float64)).item() in (130, 700)


def test_rows_of_a_broken_checkpoint_give_a_token_of_the_vocabulary_not_an_index_error():
    weights = torch.full((2, 300), torch.nan)
    weights[1] = 0
    tokens = inverse_cdf(weights, torch.tensor([0.5, TOP], dtype=torch.float64))
    assert bool(((tokens >= 0) & (tokens < 300)).all())
