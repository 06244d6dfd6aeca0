"""Is the engine lossless here? Its greedy text, alone and in batches, held against the target itself (METHOD: section 6).

In float32 the tokens must equal those of transformers' own greedy `generate`. In half precision a pass over one row
and a pass over several differ in the last bits, so a near-tie may flip without any fault: there the emitted
text is run through the target once more, and every token must be the most probable one or nearly so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pard2.engine.engine import Engine
from pard2.engine.request import Completion
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error
from pard2.kernels.packed import PackedLinear
from pard2.models.target import Target

# Proposals that must have been accepted before a test says "lossless": one that was wrong in one place of seven would have shown, 95 times of 100.
FEWEST_ACCEPTED = 20
# Two last bits of a bfloat16 logit between 16 and 32, about the size of a chat model's largest ones.
NEAR_TIE = 0.25


@dataclass(frozen=True)
class PromptAudit:
    """The verdict on one decoding of one prompt.

    together: decoded in a batch with the other prompts, not alone. first_difference: the first new token (from 0) that is not what
    the target says; None if none. near_ties: tokens that were not the target's first choice but within the tolerance of it.
    largest_gap: logits that the worst token lay behind the first choice. acceptance_length, proposed, judged, accepted: of the decoding that
    was audited, see `Stats`. Equality knows no near-ties, and says 0 for both.
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


def audit(
    engine: Engine, prompts: Sequence[list[int]], max_new_tokens: int, near_tie: float = NEAR_TIE, together: bool = False
) -> Iterator[PromptAudit]:
    """Decode each prompt and hold the result against the target, by equality in float32 and by near-ties otherwise.

    prompts: token ids. near_tie: the largest gap, in logits, between a token and the target's first choice that rounding may explain.
    together: after each alone, decode all of them once more in batches. Raises `Pard2Error` where a decoding fails.
    """
    exact = demands_equality(engine.target)
    references: list[list[int] | None] = []
    params = SamplingParams(max_new_tokens)
    for ids in prompts:
        references.append(greedy_reference(engine.target, ids, max_new_tokens) if exact else None)
        (completion,) = engine.generate([ids], params)
        yield _check(engine.target, ids, completion, references[-1], max_new_tokens, near_tie, False)
    if together:
        for ids, completion, reference in zip(prompts, engine.generate(prompts, params), references, strict=True):
            yield _check(engine.target, ids, completion, reference, max_new_tokens, near_tie, True)


def _check(
    target: Target, ids: list[int], completion: Completion, reference: list[int] | None, max_new_tokens: int, near_tie: float, together: bool
) -> PromptAudit:
    if completion.error is not None:
        raise Pard2Error(completion.error)
    if reference is not None:
        different, ties, gap = first_difference(completion.token_ids, reference), 0, 0.0
    else:
        different, ties, gap = _teacher_forced(target, ids, completion, max_new_tokens, near_tie)
    s = completion.stats
    found = len(completion.token_ids), different, ties, gap
    return PromptAudit(together, len(ids), *found, s.acceptance_length, s.proposed, s.judged, s.accepted)


def demands_equality(target: Target) -> bool:
    """True for a target that computes in float32 with float32 weights; packed layers hold half-precision ones."""
    packed = any(isinstance(module, PackedLinear) for module in target.model.modules())
    return target.model.dtype == torch.float32 and not packed


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


def _teacher_forced(target: Target, prompt: list[int], completion: Completion, max_new_tokens: int, near_tie: float) -> tuple[int | None, int, float]:
    """First wrong token, number of near-ties and the largest gap of a completion."""
    emitted = completion.token_ids
    # The last token is read by nobody.
    tokens = torch.tensor([prompt + emitted[:-1]], device=target.device)
    logits = target.forward(tokens, num_logits=len(emitted)).logits
    assert logits is not None
    gaps = gaps_to_first_choice(logits[0], torch.tensor(emitted, device=target.device))
    wrong = [i for i, gap in enumerate(gaps) if not gap <= near_tie]
    ended = _wrong_ending(target, prompt, completion, max_new_tokens)
    if ended is not None:
        wrong.append(ended)
    return min(wrong, default=None), sum(0 < gap <= near_tie for gap in gaps), max(gaps)


def gaps_to_first_choice(logits: Tensor, tokens: Tensor) -> list[float]:
    """How far each token's logit lies behind the largest, 0 for a first choice. logits: [T, V]; tokens: [T]."""
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
