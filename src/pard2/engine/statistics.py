"""What decoding did and how long it took, step by step and summed up."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

# The OpenAI API's, and two of our own for what ended before its time.
FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probabilities of the TARGET at one emitted token, before temperature and any other processing.

    top: the most probable tokens with theirs, best first, as many as were asked for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Step:
    """The tokens that one pass of the target brought one sequence: first the prompt's pass,
    then one Step for each cycle.

    token_ids: what was emitted; the last one is the target's own, the `accepted` before it are the draft's.
        Where the answer's end cuts an accepted block, its last token counts as the target's own and what was
        proposed behind it, having been neither accepted nor rejected, does not count in `proposed`. Of a
        tree `proposed` is the depth.
    seconds: wall time, of which draft_seconds and verify_seconds went into the two models; sequences of a
        batch share a cycle, and each has all of its seconds.
    finish_reason: None but in the last step; "stop" for an end-of-answer token or a stop
        string, "length" for a limit.
    text: may be shown now (`TextStream`); None without a tokenizer.
    logprobs: of token_ids, where asked for.
    index: of the completion among the n of its request.
    """

    token_ids: tuple[int, ...]
    accepted: int
    proposed: int
    seconds: float
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    finish_reason: FinishReason | None = None
    text: str | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    index: int = 0


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Counts and times of one completion, or of several added up (`a + b`).

    The prompt's pass, with the first token that it brings, is the prefill and no cycle. Hence
    completion tokens = prefills + cycles + accepted.
    """

    accepted_per_cycle: tuple[int, ...] = ()
    proposed_per_cycle: tuple[int, ...] = ()
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0

    @classmethod
    def of(cls, steps: Iterable[Step]) -> "Stats":
        """Sum up the steps of one completion, the first of which is the prefill."""
        prefill, *cycles = [step for step in steps if step.token_ids] or [None]
        if prefill is None:  # ended before its first token
            return cls()
        return cls(
            accepted_per_cycle=tuple(step.accepted for step in cycles),
            proposed_per_cycle=tuple(step.proposed for step in cycles),
            prefill_seconds=prefill.seconds,
            decode_seconds=sum(step.seconds for step in cycles),
            draft_seconds=sum(step.draft_seconds for step in cycles),
            verify_seconds=sum(step.verify_seconds for step in cycles),
        )

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(**{name: mine + vars(other)[name] for name, mine in vars(self).items()})

    @property
    def cycles(self) -> int:
        return len(self.accepted_per_cycle)

    @property
    def accepted(self) -> int:
        return sum(self.accepted_per_cycle)

    @property
    def proposed(self) -> int:
        return sum(self.proposed_per_cycle)

    @property
    def judged(self) -> int:
        """Proposals that something was decided about: the accepted ones, and in each
        cycle the first that fell."""
        return sum(min(a + 1, p) for a, p in zip(self.accepted_per_cycle, self.proposed_per_cycle, strict=True))

    @property
    def acceptance_length(self) -> float:
        """Tokens emitted per cycle, the target's own included: 1 + accepted / cycles (METHOD:
        section 1); 1 without a cycle."""
        return 1 + self.accepted / max(self.cycles, 1)

    @property
    def accepted_by_position(self) -> list[float]:
        """For each position of the proposal, from the first: of the cycles that proposed it,
        the share that accepted it."""
        rates = []
        for position in range(max(self.proposed_per_cycle, default=0)):
            asked = [a for a, p in zip(self.accepted_per_cycle, self.proposed_per_cycle, strict=True) if p > position]
            rates.append(sum(a > position for a in asked) / len(asked))
        return rates

    @property
    def tokens_per_second(self) -> float:
        """Of the cycles alone, the prefill and its token left out; 0 without a cycle."""
        return (self.cycles + self.accepted) / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def other_seconds(self) -> float:
        """Decoding time outside the two models."""
        return self.decode_seconds - self.draft_seconds - self.verify_seconds

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON."""
        return {
            "cycles": self.cycles,
            "proposed": self.proposed,
            "accepted": self.accepted,
            "acceptance_length": self.acceptance_length,
            "accepted_by_position": self.accepted_by_position,
            "accepted_per_cycle": list(self.accepted_per_cycle),
            "prefill_seconds": self.prefill_seconds,
            "decode_seconds": self.decode_seconds,
            "draft_seconds": self.draft_seconds,
            "verify_seconds": self.verify_seconds,
            "other_seconds": self.other_seconds,
            "tokens_per_second": self.tokens_per_second,
        }


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What an engine has done so far, every pass counted once however many sequences shared it.

    tokens: emitted in cycles, those of the prompts' passes (one each) left out. Seconds: wall time.
    """

    cycles: int = 0
    tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(**{name: mine + vars(other)[name] for name, mine in vars(self).items()})

    def __sub__(self, other: "Totals") -> "Totals":
        return Totals(**{name: mine - vars(other)[name] for name, mine in vars(self).items()})

    @property
    def tokens_per_second(self) -> float:
        """Of the cycles alone; 0 without a cycle."""
        return self.tokens / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def other_seconds(self) -> float:
        """Decoding time outside the two models."""
        return self.decode_seconds - self.draft_seconds - self.verify_seconds
