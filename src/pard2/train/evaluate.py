"""Evaluation by real decoding: loss and accuracy are not acceptance."""

from typing import Any

from pard2.data.chat import prompt_ids
from pard2.data.records import Record, up_to_user
from pard2.engine.engine import Engine
from pard2.engine.sampling import SamplingParams
from pard2.engine.statistics import Stats
from pard2.errors import Pard2Error
from pard2.models.draft import Draft
from pard2.models.target import Target

_BATCH = 16


def acceptance(target: Target, draft: Draft, records: list[Record], method: str, max_tokens: int) -> dict[str, Any]:
    """Acceptance of a draft on prompts, greedy, at its trained K. A prompt is a record's messages up to its last user turn.

    Returns `acceptance_length` (bonus included) and `accepted_by_position`, over all cycles of all prompts together, as `Stats` defines them.
    Raises `Pard2Error` for a record without a user turn.
    """
    assert draft.spec is not None, "only a draft with a mask token is trained"
    prompts = []
    for record in records:
        messages = up_to_user(record)
        if not messages:
            raise Pard2Error(f"data.evaluation: record {record['id']!r} has no user message")
        prompts.append(prompt_ids(target.tokenizer, messages))
    # No more than it needs: by default an engine takes much of the memory that is free, which training wants back.
    positions = _BATCH * (max(map(len, prompts)) + max_tokens)
    engine = Engine(target, draft, method, draft.spec.draft_tokens, max_batch=_BATCH, cache_tokens=positions)
    completions = engine.generate(prompts, SamplingParams(max_tokens=max_tokens))
    stats = sum((completion.stats for completion in completions), Stats())
    return {
        "method": method,
        "acceptance_length": stats.acceptance_length,
        "accepted_by_position": [round(rate, 4) for rate in stats.accepted_by_position],
    }
