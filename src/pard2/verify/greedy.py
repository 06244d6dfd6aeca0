"""Is greedy decoding lossless here? The engine's text, of prompts decoded alone and in batches, checked
against its target (METHOD: section 6).

In float32 the tokens must equal those of transformers' own greedy `generate`. In half precision a pass over
one token and a pass over several differ in the last bits, so that a near-tie may be decided either way
without any fault. There the emitted text is run through the target once more, and every token must be the
most probable one or nearly so. Our own kernels decide even those alike, since a row comes out the same in any
company: with their weight formats the tokens must, besides, equal those of plain decoding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pard2.engine.engine import Engine
from pard2.engine.methods import PLAIN
from pard2.engine.request import Completion
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error
from pard2.kernels.packed import PackedLinear
from pard2.kernels.weight_format import OWN_FORMATS
from pard2.models.target import Target

# Proposals that must have been accepted before a check says "lossless". An engine that accepts one wrong
# proposal in seven is found by 20 of them 95 times in 100.
FEWEST_ACCEPTED = 20
# Two last bits of a bfloat16 logit between 16 and 32, about the size of a chat model's largest ones.
NEAR_TIE = 0.25


@dataclass(frozen=True, kw_only=True)
class PromptAudit:
    """What the check of one decoding of one prompt found.

    together: whether it was decoded in a batch with the other prompts; otherwise alone.
    prompt_tokens, new_tokens: how many tokens the prompt and the answer have.
    first_difference: index of the first new token that is not what the target says; None if there is none.
    near_ties: tokens that were not the target's first choice but within the tolerance of it; 0 where
        equality is asked.
    largest_gap: logits between the first choice and the token furthest behind it; 0 where equality is
        asked.
    acceptance_length, proposed, judged, accepted: of this decoding, as in `Stats`.
    """

    together: bool
    prompt_tokens: int
    new_tokens: int
    first_difference: int | None
    near_ties: int
    largest_gap: float
    acceptance_length: float
    proposed: int
    judged: int
    accepted: int

    @property
    def lossless(self) -> bool:
        return self.first_difference is None


@dataclass(frozen=True)
class _Differences:
    """As in `PromptAudit`."""

    first: int | None
    near_ties: int = 0
    largest_gap: float = 0.0


def audit(
    engine: Engine, prompts: Sequence[list[int]], max_new_tokens: int, near_tie: float = NEAR_TIE, together: bool = False
) -> Iterator[PromptAudit]:
    """Decode each prompt and check the text against the target: by equality in float32, else by near-ties,
    and, where `rows_are_alike`, by equality with our own plain decoding.

    engine: decodes; its target is the judge.
    prompts: token ids.
    max_new_tokens: of each answer.
    near_tie: the largest gap, in logits, between a token and the target's first choice that rounding may
        explain.
    together: after each prompt alone, decode all of them once more in batches.

    Raises `Pard2Error` where a decoding fails.
    """
    target, params = engine.target, SamplingParams(max_tokens=max_new_tokens)
    plain = Engine(target, method=PLAIN, max_batch=1) if rows_are_alike(target) else None
    references: list[list[int] | None] = []
    for ids in prompts:
        if plain is not None:
            references.append(plain.generate([ids], params)[0].token_ids)
        else:
            references.append(greedy_reference(target, ids, max_new_tokens) if demands_equality(target) else None)
        (completion,) = engine.generate([ids], params)
        yield _check(target, ids, completion, references[-1], max_new_tokens, near_tie, False)
    if together:
        for ids, completion, reference in zip(prompts, engine.completions(prompts, params), references, strict=True):
            yield _check(target, ids, completion, reference, max_new_tokens, near_tie, True)


def _check(
    target: Target, ids: list[int], completion: Completion, reference: list[int] | None, max_new_tokens: int, near_tie: float, together: bool
) -> PromptAudit:
    if completion.error is not None:
        raise Pard2Error(completion.error)
    found = _Differences(None) if demands_equality(target) else _teacher_forced(target, ids, completion, max_new_tokens, near_tie)
    differences = [found.first, None if reference is None else first_difference(completion.token_ids, reference)]
    stats = completion.stats
    return PromptAudit(
        together=together,
        prompt_tokens=len(ids),
        new_tokens=len(completion.token_ids),
        first_difference=min((at for at in differences if at is not None), default=None),
        near_ties=found.near_ties,
        largest_gap=found.largest_gap,
        acceptance_length=stats.acceptance_length,
        proposed=stats.proposed,
        judged=stats.judged,
        accepted=stats.accepted,
    )


def demands_equality(target: Target) -> bool:
    """Whether a target computes in float32 with float32 weights; packed layers hold half-precision ones."""
    packed = any(isinstance(module, PackedLinear) for module in target.model.modules())
    return target.model.dtype == torch.float32 and not packed


def rows_are_alike(target: Target) -> bool:
    """Whether a row of a pass comes out the same, to the last bit, whatever rows share it."""
    return target.weight_format in OWN_FORMATS


def first_difference(ours: list[int], theirs: list[int]) -> int | None:
    """Index of the first token that differs, a missing one included; None for equal lists."""
    if ours == theirs:
        return None
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))


@torch.inference_mode()
def greedy_reference(target: Target, prompt: list[int], max_new_tokens: int) -> list[int]:
    """New token ids of transformers' own greedy `generate`, the end-of-answer token included."""
    tokens = torch.tensor([prompt], device=target.device)
    stops = sorted(target.eos_token_ids)
    output = target.model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=min(max_new_tokens, target.context_length - len(prompt) + 1),
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        eos_token_id=stops or None,
        pad_token_id=stops[0] if stops else 0,
    )
    return output[0, len(prompt) :].tolist()


def _teacher_forced(target: Target, prompt: list[int], completion: Completion, max_new_tokens: int, near_tie: float) -> _Differences:
    """Check a completion by one pass of the target over prompt and answer."""
    emitted = completion.token_ids
    # The last token is not fed: nothing follows it.
    tokens = torch.tensor([prompt + emitted[:-1]], device=target.device)
    logits = target.forward(tokens, num_logits=len(emitted)).logits
    assert logits is not None
    gaps = gaps_to_first_choice(logits[0], torch.tensor(emitted, device=target.device))
    wrong = [i for i, gap in enumerate(gaps) if not gap <= near_tie]  # `gap > near_tie` would let a NaN pass
    ended = _wrong_ending(target, prompt, completion, max_new_tokens)
    if ended is not None:
        wrong.append(ended)
    return _Differences(min(wrong, default=None), sum(0 < gap <= near_tie for gap in gaps), max(gaps))


def gaps_to_first_choice(logits: Tensor, tokens: Tensor) -> list[float]:
    """How far the logit of each token [T] lies behind the largest of logits [T, V]; 0 for a first choice."""
    logits = logits.float()
    return (logits.max(-1).values - logits.gather(-1, tokens[:, None])[:, 0]).tolist()


def _wrong_ending(target: Target, prompt: list[int], completion: Completion, max_new_tokens: int) -> int | None:
    """Where a completion should have ended or gone on; None if it ended where it must."""
    emitted = completion.token_ids
    room = min(max_new_tokens, target.context_length - len(prompt) + 1)
    stops = [i for i, token in enumerate(emitted) if token in target.eos_token_ids]
    if stops and stops[0] < len(emitted) - 1:
        return stops[0] + 1
    if len(emitted) > room or (not stops and len(emitted) < room):
        return min(len(emitted), room)
    return None
