"""Does the engine sample from the target's own distribution? A statistical test on real models with
vocabularies of any size (METHOD: section 6).

Many completions of a prompt are drawn; the target, run by transformers, gives the probability of each of
their tokens after those before it. Two chi-square tests are made of that:

- ranks. Put the tokens that may follow a prefix in falling order of probability, and give each a part of
  [0, 1] as long as it is probable. A point taken at random within the drawn token's part, its rank, is
  uniform, whatever the distribution. So all tokens of all prompts share one histogram. It shows sampling
  that is too sharp, too flat, or favours what drafts propose, which are probable tokens.
- prefixes. Where many completions share a prefix, the tokens that follow are counted one by one, the
  improbable ones together. It shows errors of any direction, near the beginning of the answers.

Neither needs a token to be likely, and neither is changed by the last bits that half precision rounds. An
engine that is lossless fails each with probability FALSE_ALARM / 2. A test that had nothing to count has
not been passed.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
import transformers
from torch import Tensor

from pard2.engine.engine import Engine
from pard2.engine.sampling import SamplingParams
from pard2.engine.statistics import Stats
from pard2.errors import Pard2Error
from pard2.models.target import Target
from pard2.verify import FEWEST_SAMPLES

FALSE_ALARM = 1e-4
_BINS = 16  # of the histogram of ranks
_EXPECTED = FEWEST_SAMPLES / 2  # in each cell: fewer, and the statistic's tail is no longer chi-square's
_MOST_CELLS = 64  # of one prefix
_LOGITS = 2**24  # in memory at once


@dataclass(frozen=True)
class ChiSquare:
    """Pearson's statistic. Independent ones add up.

    value: the sum of (count - expected)^2 / expected over cells.
    freedom: its degrees of freedom.
    """

    value: float = 0.0
    freedom: int = 0

    def __add__(self, other: "ChiSquare") -> "ChiSquare":
        return ChiSquare(self.value + other.value, self.freedom + other.freedom)

    @property
    def chance(self) -> float:
        """The probability of this value or a larger one where counts come from the distribution expected."""
        if self.freedom == 0:
            return 1.0
        half = torch.tensor([self.freedom, self.value], dtype=torch.float64) / 2
        return float(torch.special.gammaincc(half[0], half[1]))


@dataclass(frozen=True)
class Draws:
    """What the completions of one prompt showed.

    completions: how many were drawn.
    ranks: of every token; uniform in [0, 1) and independent where sampling is lossless.
    prefixes: how many prefixes were shared by enough completions to count what follows.
    by_prefix: the statistic of those counts, summed over the prefixes.
    stats: of the completions.
    """

    completions: int
    ranks: tuple[float, ...]
    prefixes: int
    by_prefix: ChiSquare
    stats: Stats = field(default_factory=Stats)


@dataclass(frozen=True, kw_only=True)
class DistributionTest:
    """The verdict on sampling.

    completions, tokens, prefixes: how many were counted.
    ranks_chance: the probability of ranks at least as far from uniform as those seen, if the engine is
        lossless.
    prefixes_chance: the same of what follows prefixes.
    false_alarm: the bar: below it, in both tests together, the engine is said not to fit.
    prefixes_freedom: degrees of freedom of the second test; 0 if there was nothing to count.
    proposed, judged, accepted: of all completions, as in `Stats`.
    """

    completions: int
    tokens: int
    prefixes: int
    ranks_chance: float
    prefixes_chance: float
    false_alarm: float = FALSE_ALARM
    prefixes_freedom: int = 1
    proposed: int = 0
    judged: int = 0
    accepted: int = 0

    @property
    def chance(self) -> float:
        """Of the worse of the two tests; doubled, because there are two."""
        return min(1.0, 2 * min(self.ranks_chance, self.prefixes_chance))

    @property
    def fits(self) -> bool:
        """Whether neither test failed. One that had nothing to count has not failed."""
        # Each by itself: no comparison with a NaN holds, so a NaN does not pass.
        return 2 * self.ranks_chance >= self.false_alarm and 2 * self.prefixes_chance >= self.false_alarm

    @property
    def lossless(self) -> bool:
        """Whether both tests had something to count, and passed."""
        return self.fits and self.prefixes_freedom > 0


def draw(engine: Engine, prompt: list[int], samples: int, max_new_tokens: int, temperature: float, seed: int) -> Draws:
    """Sample completions of a prompt and check them against the target.

    engine: samples; its target is the judge.
    prompt: token ids.
    samples: how many completions.
    max_new_tokens: of each.
    temperature: above 0.
    seed: of the first; the others have the seeds after it. No two prompts may share seeds, or their numbers
        would not be independent.

    Raises `Pard2Error` where a completion fails.
    """
    each = [SamplingParams(max_tokens=max_new_tokens, temperature=temperature, seed=seed + i, ignore_eos=True) for i in range(samples)]
    texts, stats = [], Stats()
    for completion in engine.completions([prompt] * samples, each):
        if completion.error is not None:
            raise Pard2Error(completion.error)
        texts.append(tuple(completion.token_ids))
        stats += completion.stats
    return replace(measure(engine.target, prompt, texts, temperature, seed), stats=stats)


@torch.inference_mode()
def measure(target: Target, prompt: list[int], texts: list[tuple[int, ...]], temperature: float, seed: int) -> Draws:
    """Check texts of equal length, drawn as answers to `prompt`, against the target.

    target: the judge.
    prompt: token ids.
    texts: new token ids of each completion.
    temperature: that they were drawn with.
    seed: of the random part of the ranks.
    """
    visits = Counter(text[:end] for text in texts for end in range(len(text)))
    following: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for text in texts:
        for end, token in enumerate(text):
            following[text[:end]][token] += 1
    statistics: dict[tuple[int, ...], ChiSquare] = {}
    ranks: list[float] = []
    generator = torch.Generator().manual_seed(seed)
    length = len(texts[0])
    chunk = max(1, _LOGITS // (length * target.vocab_size))
    for first in range(0, len(texts), chunk):
        some = texts[first : first + chunk]
        for text, p in zip(some, _distributions(target, prompt, some, temperature), strict=True):
            u = torch.rand(length, generator=generator, dtype=torch.float64).to(p.device)
            ranks += rank(p, torch.tensor(text, device=p.device), u).tolist()
            for end in range(length):
                prefix = text[:end]
                if visits[prefix] >= 2 * _EXPECTED and prefix not in statistics:
                    statistics[prefix] = compare(p[end], following[prefix])
    return Draws(len(texts), tuple(ranks), len(statistics), sum(statistics.values(), ChiSquare()))


def judge(draws: Iterable[Draws]) -> DistributionTest:
    """The verdict on the draws of several prompts."""
    draws = list(draws)
    ranks = torch.tensor([rank for one in draws for rank in one.ranks], dtype=torch.float64)
    bins = min(_BINS, int(len(ranks) / _EXPECTED))
    counts = torch.bincount((ranks * bins).long().clamp(0, bins - 1), minlength=bins).double()
    expected = len(ranks) / bins
    uniform = ChiSquare(float(((counts - expected) ** 2 / expected).sum()), bins - 1)
    by_prefix = sum((one.by_prefix for one in draws), ChiSquare())
    stats = sum((one.stats for one in draws), Stats())
    return DistributionTest(
        completions=sum(one.completions for one in draws),
        tokens=len(ranks),
        prefixes=sum(one.prefixes for one in draws),
        ranks_chance=uniform.chance,
        prefixes_chance=by_prefix.chance,
        prefixes_freedom=by_prefix.freedom,
        proposed=stats.proposed,
        judged=stats.judged,
        accepted=stats.accepted,
    )


def rank(p: Tensor, tokens: Tensor, u: Tensor) -> Tensor:
    """Where tokens [T] lie on the scale of cumulative probability, the most probable first: [T] in [0, 1].

    p: [T, V] distribution that each token was drawn from.
    tokens: [T].
    u: [T] uniform numbers: where within the token's own part of the scale. Ranks are then uniform, too.
    """
    own = p.gather(1, tokens[:, None])
    before = (p > own) | ((p == own) & (torch.arange(p.shape[1], device=p.device) < tokens[:, None]))
    return (p * before).sum(-1) + u * own[:, 0]


def compare(p: Tensor, counts: Counter[int]) -> ChiSquare:
    """The statistic of counts of tokens drawn from p [V].

    Tokens go into cells in falling order of probability; a cell is full when enough counts are expected.
    """
    total = counts.total()
    best = p.topk(min(_MOST_CELLS, len(p)))
    cells = [[0.0, 0]]
    for token, expected in zip(best.indices.tolist(), (best.values * total).tolist(), strict=True):
        cells[-1][0] += expected
        cells[-1][1] += counts[token]
        if cells[-1][0] >= _EXPECTED:
            cells.append([0.0, 0])
    # The last cell is all that is left; it joins the one before where too few counts are expected in it.
    tail = [total - sum(expected for expected, _ in cells[:-1]), total - sum(count for _, count in cells[:-1])]
    cells[-1] = tail
    if tail[0] < _EXPECTED and len(cells) > 1:
        cells[-2:] = [[a + b for a, b in zip(cells[-2], tail, strict=True)]]
    return ChiSquare(sum((count - expected) ** 2 / expected for expected, count in cells), len(cells) - 1)


def _distributions(target: Target, prompt: list[int], texts: list[tuple[int, ...]], temperature: float) -> Tensor:
    """The target's distribution before each token of each text, [B, T, V] float64, by transformers."""
    cache = transformers.DynamicCache(config=target.config)
    first = target.forward(torch.tensor([prompt], device=target.device), cache, num_logits=1).logits
    assert first is not None
    logits = first.expand(len(texts), -1, -1)
    if len(texts[0]) > 1:  # the last token is not fed: nothing follows it
        cache.batch_repeat_interleave(len(texts))
        rest = target.forward(torch.tensor([text[:-1] for text in texts], device=target.device), cache).logits
        assert rest is not None
        logits = torch.cat([logits, rest], dim=1)
    return (logits.double() / temperature).softmax(-1)
