"""What the caller holds of a prompt that is being answered, and what it gets in the end."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pard2.engine.sequence import Sequence
from pard2.engine.statistics import FinishReason, Stats, Step, TokenLogprob
from pard2.errors import first_line

OnStep = Callable[[Step], None]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What one prompt brought, or one of the n completions of a prompt.

    token_ids: the new tokens, with the end-of-answer token where that ended it.
    text: without it and other special tokens, and cut before a stop string; None where
        the target has no tokenizer.
    prompt_tokens: how many the prompt had.
    index: among the n.
    logprobs: the target's, of each token, where asked for.
    error: why finish_reason is "error".
    """

    token_ids: list[int]
    text: str | None
    finish_reason: FinishReason
    prompt_tokens: int
    stats: Stats
    method: str
    index: int = 0
    logprobs: list[TokenLogprob] | None = None
    error: str | None = None


@dataclass(eq=False)
class Request:
    """One prompt with its n sequences. on_step: called with each step of each sequence as it is made.

    Steps not yet taken and the decoding itself go on whoever looks at them; see `Engine.submit`.
    """

    sequences: list[Sequence]
    method: str
    on_step: OnStep | None = None
    _steps: list[list[Step]] = field(init=False)

    def __post_init__(self) -> None:
        self._steps = [[] for _ in self.sequences]

    @property
    def done(self) -> bool:
        return all(sequence.finish_reason is not None for sequence in self.sequences)

    @property
    def settled(self) -> bool:
        """Whether it is done, and told so: another thread may end it right after a report."""
        return self.done and (self.on_step is None or not any(sequence.steps for sequence in self.sequences))

    def cancel(self) -> None:
        """End it with what has been said so far; its memory is free before the next pass."""
        for sequence in self.sequences:
            sequence.end("cancelled")

    def take_steps(self) -> Iterator[Step]:
        """The steps made since the last call, sequence by sequence."""
        for sequence, steps in zip(self.sequences, self._steps, strict=True):
            while sequence.steps:
                step = sequence.steps.popleft()
                steps.append(step)
                yield step

    def report(self) -> None:
        """Call `on_step` with the steps made since the last report.

        What it raises ends this request, and no other.
        """
        if self.on_step is None:
            return
        for step in self.take_steps():
            try:
                self.on_step(step)
            except Exception as error:
                self.on_step = None  # it is told no more
                message = f"the callback raised {type(error).__name__}: {first_line(error)}"
                for sequence in self.sequences:
                    sequence.end("error", message)
                # It may have ended by itself in the very step that could not be handed over.
                failed = self.sequences[step.index]
                failed.finish_reason, failed.error = "error", message
                return

    def completions(self) -> list[Completion]:
        """What its n sequences brought. Raises `ValueError` before they are done."""
        if not self.done:
            raise ValueError("the request is not done")
        for _ in self.take_steps():
            pass
        return [self._completion(sequence, steps) for sequence, steps in zip(self.sequences, self._steps, strict=True)]

    def _completion(self, sequence: Sequence, steps: list[Step]) -> Completion:
        assert sequence.finish_reason is not None
        logprobs = None
        if sequence.params.logprobs is not None:
            logprobs = [one for step in steps for one in step.logprobs or ()]
        return Completion(
            token_ids=sequence.tokens,
            text=None if sequence.text is None else sequence.text.text,
            finish_reason=sequence.finish_reason,
            prompt_tokens=len(sequence.prompt),
            stats=Stats.of(steps),
            method=self.method,
            index=sequence.index,
            logprobs=logprobs,
            error=sequence.error,
        )
