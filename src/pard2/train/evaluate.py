"""Evaluation by real decoding: loss and accuracy are not acceptance, and acceptance is not speed."""

from collections.abc import Sequence
from typing import Any

import torch

from pard2.checkpoints.loading import load_target, parse_device
from pard2.checkpoints.weight_choice import asked_format
from pard2.config import TrainConfig
from pard2.data.arguments import with_arguments
from pard2.data.chat import prompt_ids
from pard2.data.conversations import Record, template_arguments, up_to_user
from pard2.data.corpus import Examples
from pard2.engine.engine import Engine
from pard2.engine.methods import PLAIN, methods_for
from pard2.engine.options import DraftTokens
from pard2.engine.prompts import encode_prompt
from pard2.engine.request import Completion
from pard2.engine.sampling import SamplingParams
from pard2.engine.statistics import Stats
from pard2.errors import Pard2Error
from pard2.intervals import Array, bootstrap
from pard2.models.any_draft import AnyDraft
from pard2.models.target import Target

TIMED_PROMPTS = 4  # decoded once more, one by one, by every method in turn
_BATCH = 16
_WARM_UP_TOKENS = 8

Prompts = Sequence[list[int]]


def held_out_prompts(
    target: Target, records: Sequence[Record], arguments: dict[str, Any] | None = None, examples: Examples | None = None
) -> list[list[int]]:
    """Token ids of each record's messages up to its last user turn.

    arguments: `data.chat_template_kwargs` of the run.
    examples: of the run. Their `notes` get the number of prompts whose arguments no example has.

    Raises `Pard2Error`, naming the record, for one that is no prompt of this target.
    """
    prompts, others = [], 0
    for record in (with_arguments(record, arguments) for record in records):
        if examples is not None and examples.arguments is not None:
            others += (record.get("chat_template_kwargs") or {}) not in examples.arguments
        messages = up_to_user(record)
        if not messages:
            raise Pard2Error(f"data.evaluation: record {record['id']!r} has no user message")
        try:
            prompts.append(encode_prompt(target, prompt_ids(target.tokenizer, messages, template_arguments(record))))
        except Pard2Error as error:
            raise Pard2Error(f"data.evaluation: record {record['id']!r}: {error}") from None
    if others:
        examples.notes["evaluation prompts with `chat_template_kwargs` that no training conversation has"] = others
    return prompts


def check_evaluation(config: TrainConfig) -> None:
    """Raises `Pard2Error` for `loop.evaluation_weights` that this device does not have."""
    if config.loop.evaluation_weights != "auto":
        asked_format(config.loop.evaluation_weights, parse_device(config.loop.device), torch.bfloat16, "loop.evaluation_weights")


def evaluation_target(config: TrainConfig, trained: Target) -> Target:
    """What evaluations decode with: the target of the training itself, or a copy in the form asked for."""
    form = config.loop.evaluation_weights
    if form == "auto":
        return trained
    return load_target(config.target.name, "bfloat16", trained.device, asked_format(form, trained.device, torch.bfloat16), _BATCH)


def evaluate(target: Target, draft: AnyDraft, prompts: Prompts, max_tokens: int) -> list[dict[str, Any]]:
    """Acceptance and speed of a draft, greedy, in each mode that it has; target-dependent first.

    prompts: of `held_out_prompts`.

    Returns, for each mode, what `acceptance` and `speed` return, in one dict.
    """
    methods = methods_for(draft.kind)
    speeds = speed(target, draft, prompts[:TIMED_PROMPTS], methods, max_tokens)
    return [acceptance(target, draft, prompts, method, max_tokens) | speeds[method] for method in methods]


def acceptance(
    target: Target, draft: AnyDraft | None, prompts: Prompts, method: str, max_tokens: int, draft_tokens: DraftTokens = "full", tree: int = 0
) -> dict[str, Any]:
    """Of all cycles of all prompts together, decoded in batches at the trained K, an ordinary LM at 8.

    draft_tokens, tree: of the engine, where something else is asked for.

    Returns `acceptance_length` (bonus included) and `accepted_by_position` as `Stats` defines them,
    `acceptance_length_interval` (95 %, by bootstrap over prompts; None for one prompt), and `draft_tokens`,
    `prompts` and `cycles`, the numbers of them.
    """
    engine = _engine(target, draft, method, draft_tokens, _BATCH, prompts, max_tokens, tree)
    each = [completion.stats for completion in _complete(engine, prompts, max_tokens)]
    stats = sum(each, Stats())
    interval = bootstrap([(one.accepted, one.cycles) for one in each], _acceptance_length)
    return {
        "method": method,
        "acceptance_length": stats.acceptance_length,
        "acceptance_length_interval": interval,
        "accepted_by_position": [round(rate, 4) for rate in stats.accepted_by_position],
        "draft_tokens": engine.draft_tokens,
        "prompts": len(prompts),
        "cycles": stats.cycles,
    }


def speed(target: Target, draft: AnyDraft, prompts: Prompts, methods: Sequence[str], max_tokens: int) -> dict[str, dict[str, Any]]:
    """How much faster than plain decoding each method is for one user.

    Prompts are decoded one by one, each by every method in turn, with K "auto". Returns, for each method:

    `speedup`: ratio of tokens per second of the cycles alone, all prompts together; None where no answer is
        longer than a token.
    `speedup_interval`: 95 %, by bootstrap over prompts.
    `tokens_per_second`, `plain_tokens_per_second`: the two sides of the ratio.
    `timed_prompts`: how many prompts count.
    """
    order = [PLAIN, *methods]
    engines = {m: _engine(target, draft, m, "auto", 1, prompts, max_tokens) for m in order}
    for engine in engines.values():
        _complete(engine, prompts[:1], min(max_tokens, _WARM_UP_TOKENS))
    stats: dict[str, list[Stats]] = {m: [] for m in order}
    for number, prompt in enumerate(prompts):
        # Every other prompt the other way round, so that nobody always comes first.
        for method in order[::-1] if number % 2 else order:
            (completion,) = _complete(engines[method], [prompt], max_tokens)
            stats[method].append(completion.stats)
    plain = sum(stats[PLAIN], Stats())
    found = {}
    for method in methods:
        # Tokens and seconds of the cycles, ours and plain decoding's.
        items = [(s.cycles + s.accepted, s.decode_seconds, p.cycles, p.decode_seconds) for s, p in zip(stats[method], stats[PLAIN], strict=True)]
        items = [item for item in items if item[0] and item[2]]
        ours = sum(stats[method], Stats())
        found[method] = {
            "speedup": round(ours.tokens_per_second / plain.tokens_per_second, 4) if items else None,
            "speedup_interval": bootstrap(items, _speedup),
            "tokens_per_second": round(ours.tokens_per_second, 1),
            "plain_tokens_per_second": round(plain.tokens_per_second, 1),
            "timed_prompts": len(items),
        }
    return found


def _engine(
    target: Target, draft: AnyDraft | None, method: str, draft_tokens: DraftTokens, batch: int, prompts: Prompts, max_tokens: int, tree: int = 0
) -> Engine:
    # No more positions than needed: by default an engine takes much of the memory that training needs.
    positions = batch * (max(map(len, prompts)) + max_tokens)
    return Engine(target, draft, method, draft_tokens, max_batch=batch, cache_tokens=positions, tree=tree)


def _complete(engine: Engine, prompts: Prompts, max_tokens: int) -> list[Completion]:
    completions = engine.generate(prompts, SamplingParams(max_tokens=max_tokens))
    for completion in completions:
        if completion.finish_reason == "error":
            raise Pard2Error(f"evaluation by {engine.method} failed: {completion.error}")
    return completions


def _acceptance_length(sums: Array) -> Array:
    """METHOD: section 1. sums: accepted, cycles."""
    return 1 + sums[..., 0] / sums[..., 1].clip(min=1)


def _speedup(sums: Array) -> Array:
    """sums: tokens and seconds, ours and plain decoding's."""
    return (sums[..., 0] / sums[..., 1]) / (sums[..., 2] / sums[..., 3])
