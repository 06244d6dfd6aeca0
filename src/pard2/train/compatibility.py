"""Refuses a pair whose training pass would not be its decoding pass.

Training hands the draft a mask of its own and multiplies final states by the head's weight. An architecture
with a logit cap or scale, a sliding window, or attention that ignores such a mask computes something else
when it decodes. Rather than know them all, one conversation is run both ways: by small twins of both models
before their weights are read, and by the models themselves before the first step.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pard2.checkpoints.twin import VOCABULARY, twin
from pard2.data.corpus import Example, Examples
from pard2.errors import Pard2Error, first_line
from pard2.hf import PreTrainedConfig
from pard2.models.any_draft import AnyDraft
from pard2.models.draft import ONE_A_PASS, Draft, DraftSpec
from pard2.models.target import Target
from pard2.objective.layout import build_layout, slot_tokens
from pard2.runtime.windows import attention_windows
from pard2.train.attention import AttentionKind, draft_states

_POSITIONS = 32  # compared at the end of the conversation, where a window has slid furthest
_TOLERANCE = 1e-2  # of the largest logit; a bfloat16 target rounds by less


def check_lengths(target: Target, draft: AnyDraft, examples: Sequence[Example]) -> Example:
    """The longest conversation.

    Raises `Pard2Error` if it is longer than the models read, or than the draft looks back.
    """
    if isinstance(examples, Examples):
        longest = examples[int(examples.lengths.argmax())]
    else:
        longest = max(examples, key=lambda e: len(e.token_ids))
    length, context, window = len(longest.token_ids), *_reach(target, draft)
    if length > context:
        raise Pard2Error(f"record {longest.id} has {length} tokens, the models read {context}; set data.max_length={context} or lower")
    if length > window:
        raise Pard2Error(
            f"{draft.name!r} slides a window over the longest conversation ({length} tokens); lower data.max_length to {window}, "
            "or name another draft.path"
        )
    return longest


def check_kinds(target: Target, draft: AnyDraft, kind: AttentionKind, teaches: bool = True) -> None:
    """`check_compatibility` of small twins of both, whose own weights need not be there.

    Raises `Pard2Error` for what that refuses twice: two experts may by chance be equally good. An
    architecture of which no twin can be made is left to the check of the models themselves.
    """
    length = min(2 * _POSITIONS, *_reach(target, draft))
    conversation = Example.of("", [3 + 7 * n % (VOCABULARY - 3) for n in range(length)], [True] * length)
    for again in (False, True):
        teacher, learner = twin(target.model.config, seed=again), twin(_lm_config(target, draft), seed=again)
        if teacher is None or learner is None:
            return
        spec = None if draft.spec is None else DraftSpec(mask_token=0, draft_tokens=draft.spec.draft_tokens)
        small = Draft(learner, spec, name=draft.name)
        try:
            return check_compatibility(Target(teacher, name=target.name), small, [conversation], kind, teaches)
        except Pard2Error:
            if again:
                raise


def _lm_config(target: Target, draft: AnyDraft) -> PreTrainedConfig:
    """Of the LM that the draft is; an EAGLE-3 draft is none, and its place is taken by the target's."""
    return draft.lm.config if isinstance(draft, Draft) else target.model.config


def _reach(target: Target, draft: AnyDraft) -> tuple[int, int]:
    """Positions that both may be run over, and those that every layer of the draft looks back over."""
    context = min(target.context_length, draft.context_length)
    return context, min((window for window in attention_windows(draft.config) if window), default=context)


@torch.no_grad()
def check_compatibility(target: Target, draft: AnyDraft, examples: Sequence[Example], kind: AttentionKind, teaches: bool = True) -> None:
    """Raises `Pard2Error` unless both models can be trained with on the longest of these conversations.

    kind: of attention, by which the draft is run.
    teaches: whether the draft learns from the target's states, and not from the conversations alone.
    """
    draft.eval()  # dropout would differ between the two ways
    tokens = torch.tensor(check_lengths(target, draft, examples).token_ids, dtype=torch.long, device=target.device)
    if teaches:
        said = target.forward(tokens[None], num_logits=_POSITIONS)
        assert said.logits is not None
        if not _close(target.head(said.last_state[:, -_POSITIONS:]), said.logits):
            raise Pard2Error(f"{target.name!r} turns its final states into logits in a way that training does not know; it cannot teach a draft")
    if not isinstance(draft, Draft):
        return  # one code for both ways, and it is ours
    try:
        trained, decoded = _both_ways(draft, tokens.clamp(max=draft.vocab_size - 1), kind)
    except (Pard2Error, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a modeling file makes of a mask that it did not expect
        way_out = "name another draft.path" if kind == "dense" else "loop.attention=dense may do"
        raise Pard2Error(
            f"{draft.name!r} ({type(draft.lm).__name__}) cannot be trained with loop.attention={kind} ({first_line(error)}); {way_out}"
        ) from error
    if not _close(trained, decoded):
        raise Pard2Error(
            f"{draft.name!r} would compute other logits in training than in decoding: its architecture caps or scales logits, or lacks SDPA "
            "attention; name another draft.path"
        )


def _both_ways(draft: Draft, tokens: Tensor, kind: AttentionKind) -> tuple[Tensor, Tensor]:
    """Logits of the conversation's last positions, its end masked, by a training pass and by a decoding pass.

    The training pass is over a packed sequence that also holds what they must not see: the conversation's
    beginning, as a document of its own, and another chain.
    """
    spec = draft.spec or ONE_A_PASS
    anchor = max(0, len(tokens) - spec.draft_tokens)
    masks = len(tokens) - 1 - anchor
    before, read = tokens[:_POSITIONS], tokens[: anchor + 1]
    chains = [torch.tensor([anchor - 1, anchor][-len(read) :])] * masks
    layout = build_layout([len(before), len(read)], [[], chains]).to(tokens.device)
    inputs = slot_tokens(layout, torch.cat([before, read]), spec.mask_token)
    draft.train()
    draft_states(draft, inputs, None, layout, kind)  # raises for what happens in training alone
    draft.eval()
    states = draft_states(draft, inputs, None, layout, kind)
    compared = (layout.document == 1) & ((layout.depth == 0) | (layout.anchor == anchor))
    head = draft.lm.get_output_embeddings().weight
    trained = states[compared][-_POSITIONS:].to(head.dtype) @ head.T
    masked = torch.cat([read, read.new_full((masks,), spec.mask_token)])
    decoded = draft.forward(masked[None], None, num_logits=len(trained))[0]
    return trained, decoded if draft.short_head is None else decoded[:, draft.short_head.token_ids]


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= _TOLERANCE * other.abs().max())
