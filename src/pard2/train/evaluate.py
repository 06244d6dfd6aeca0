"""Evaluation by real decoding: loss and accuracy are not acceptance."""

from pard2.data.chat import prompt_ids
from pard2.data.records import Record
from pard2.engine.engine import Engine, SamplingParams
from pard2.models.draft import Draft
from pard2.models.target import Target


def acceptance(target: Target, draft: Draft, records: list[Record], method: str, max_tokens: int) -> dict:
    """Acceptance of a draft on prompts, greedy, at its trained K.

    Returns `acceptance_length` (bonus included) and `accepted_by_position`, over all prompts together.
    """
    engine = Engine(target, draft, method=method, draft_tokens=draft.spec.draft_tokens)
    cycles = accepted = 0
    reached = [0] * draft.spec.draft_tokens
    prompts = [prompt_ids(target.tokenizer, record["messages"]) for record in records]
    for completion in engine.generate(prompts, SamplingParams(max_tokens=max_tokens)):
        cycles += completion.stats.cycles
        accepted += completion.stats.accepted
        for count in completion.stats.accepted_per_cycle:
            for position in range(count):
                reached[position] += 1
    return {
        "method": method,
        "acceptance_length": 1 + accepted / max(1, cycles),
        "accepted_by_position": [round(count / max(1, cycles), 4) for count in reached],
    }
