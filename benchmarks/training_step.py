"""A training step of ours against a straightforward dense one: the same loss, its time,
its parts and its peak memory.

The dense step is the method as its readable formulas say it: one [S, S] mask, the full logits of both models,
one row of the teacher for every slot. It takes the same row as ours, so their losses must agree. `published`
is the dense step on a row whose chains begin in the prompt, too, as in the published code; `cached` is ours
with the target's states at hand, as from a feature cache. Time is taken in turn in one process, memory in a
process each, from what is held once both models have been touched.

    python benchmarks/training_step.py --json docs/results/training_step.json
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from common import in_turn
from pard2.config import ObjectiveConfig
from pard2.data.features import DocumentStates, online_states
from pard2.environment import meta
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.objective.chunked_loss import chunked_loss
from pard2.objective.layout import attention_mask, slot_features, slot_tokens
from pard2.objective.loss import Objective, TrainedSlots, weighted_loss
from pard2.objective.weights import cat_weights
from pard2.train.attention import AttentionKind, attention_kind, draft_states
from pard2.train.packed_sequences import PackedSequence
from pard2.train.teacher import Teacher, trained_slots
from random_models import SHAPES
from training_loads import peak_bytes, resting_bytes, training_pair, training_row

Step = Callable[[], float]

KINDS = ("ours", "cached", "dense", "published")


class Parts:
    """Seconds by part of a step."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self.start()

    def start(self) -> None:
        self._wait()
        self._last = time.perf_counter()

    def end(self, name: str) -> None:
        self._wait()
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def update(draft: Draft, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_([p for p in draft.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def our_step(
    target: Target,
    draft: Draft,
    row: PackedSequence,
    objective: ObjectiveConfig,
    optimizer: torch.optim.Optimizer,
    attention: AttentionKind,
    parts: Parts,
    cached: DocumentStates | None = None,
) -> float:
    parts.start()
    states = cached or online_states(target, row.examples, draft.spec.target_layers)[0]
    parts.end("target")
    teacher = Teacher.of(target, draft)
    slots = trained_slots(row, states, teacher, objective)
    parts.end("weights")
    layout = row.layout
    token_ids = slot_tokens(layout, row.token_ids, draft.spec.mask_token)
    final = draft_states(draft, token_ids, slot_features(layout, states.features), layout, attention, row.with_features)
    parts.end("draft forward")
    head = draft.lm.get_output_embeddings().weight
    loss = chunked_loss(final[row.trained], head, states.last_state, teacher.head, slots, Objective(draft_tokens=objective.draft_tokens))
    parts.end("vocabulary loss and its gradient")
    (loss.loss / loss.weight).backward()
    parts.end("draft backward")
    update(draft, optimizer)
    parts.end("optimizer")
    return float(loss.loss.detach() / loss.weight)


def dense_step(
    target: Target, draft: Draft, row: PackedSequence, objective: ObjectiveConfig, optimizer: torch.optim.Optimizer, parts: Parts
) -> float:
    parts.start()
    output = target.forward(row.token_ids[None], layers=draft.spec.target_layers)
    parts.end("target")
    layout, teacher = row.layout, output.logits[0].float()
    logprobs = torch.zeros(len(row.token_ids), device=teacher.device)
    logprobs[1:] = teacher[:-1].log_softmax(-1).gather(-1, row.token_ids[1:, None])[:, 0]
    weights = torch.zeros(len(layout), device=teacher.device)
    weights[row.trained] = cat_weights(layout, logprobs)[row.trained]
    parts.end("weights")
    states = draft.states(
        slot_tokens(layout, row.token_ids, draft.spec.mask_token)[None],
        slot_features(layout, output.features[0])[None],
        attention_mask(layout)[None, None],
        layout.position[None],
    )[0]
    logits: Tensor = draft.lm.get_output_embeddings()(states)
    parts.end("draft forward")
    predicted = layout.predicted_index.clamp(max=len(row.token_ids) - 1)
    slots = TrainedSlots(layout.anchor_index, layout.depth, predicted - 1, row.token_ids[predicted], weights)
    loss = weighted_loss(logits, teacher[slots.teacher_row], slots, Objective(draft_tokens=objective.draft_tokens))
    parts.end("vocabulary loss")
    (loss.loss / loss.weight).backward()
    parts.end("backward, vocabulary and draft")
    update(draft, optimizer)
    parts.end("optimizer")
    return float(loss.loss.detach() / loss.weight)


def steps(arguments: argparse.Namespace) -> tuple[dict[str, Step], dict[str, Parts], PackedSequence]:
    objective = ObjectiveConfig(draft_tokens=arguments.draft_tokens, feature_drop=0.0)
    target, draft = training_pair(arguments.shape, arguments.layers, arguments.draft_tokens, arguments.share_vocabulary, arguments.device)
    row = training_row(target, arguments.prompt, arguments.length, objective)
    published = training_row(target, arguments.prompt, arguments.length, objective.model_copy(update={"anchors": "all"}))
    optimizer = torch.optim.AdamW([p for p in draft.parameters() if p.requires_grad], lr=0.0, fused=True)
    parts = {kind: Parts(target.device) for kind in KINDS}
    attention = attention_kind("auto", target.device)
    (states,) = online_states(target, row.examples, draft.spec.target_layers)  # also touches the target's weights, which loading only maps
    return (
        {
            "ours": lambda: our_step(target, draft, row, objective, optimizer, attention, parts["ours"]),
            "cached": lambda: our_step(target, draft, row, objective, optimizer, attention, parts["cached"], states),
            "dense": lambda: dense_step(target, draft, row, objective, optimizer, parts["dense"]),
            "published": lambda: dense_step(target, draft, published, objective, optimizer, parts["published"]),
        },
        parts,
        row,
    )


def peak(kind: str) -> dict[str, int]:
    """Of one kind of step, in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", kind]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def added(memory: dict[str, int]) -> int:
    """What a step takes beyond the models at rest: gradients, the optimizer's state,
    and all that comes and goes."""
    return memory["peak_bytes"] - memory["resting_bytes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["smollm2", *SHAPES], default="smollm2", help="all but smollm2 have random weights")
    parser.add_argument("--layers", type=int, default=4, help="of the draft cut from smollm2")
    parser.add_argument("--draft-tokens", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of it that are not an answer")
    parser.add_argument("--share-vocabulary", action="store_true", help="the draft borrows the target's embedding and head, for both steps")
    parser.add_argument("--device", default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak-of", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work, parts, row = steps(arguments)
    if arguments.peak_of:
        resting = resting_bytes()
        for _ in range(2):  # the second step has the optimizer's state
            work[arguments.peak_of]()
        print(json.dumps({"resting_bytes": resting, "peak_bytes": peak_bytes()}))
        return
    losses = {kind: step() for kind, step in work.items()}  # also warms up
    for part in parts.values():
        part.seconds.clear()

    def timed(step: Step) -> Callable[[], float]:
        def run() -> float:
            began = time.perf_counter()
            step()
            return time.perf_counter() - began

        return run

    taken = in_turn({kind: timed(step) for kind, step in work.items()}, arguments.rounds)
    memory = {kind: peak(kind) for kind in work}
    median = {kind: statistics.median(times) for kind, times in taken.items()}
    result = {
        "meta": meta(),
        "tokens": len(row.token_ids),
        "slots": len(row.layout),
        "trained_slots": len(row.trained),
        "losses": losses,
        "seconds": {kind: {"median": median[kind], "all": times} for kind, times in taken.items()},
        "parts": {kind: {name: value / arguments.rounds for name, value in part.seconds.items()} for kind, part in parts.items()},
        "memory": memory,
        "speedup_over_dense": {kind: median["dense"] / median[kind] for kind in KINDS},
        "peak_over_dense": {kind: memory[kind]["peak_bytes"] / memory["dense"]["peak_bytes"] for kind in KINDS},
        "added_over_dense": {kind: added(memory[kind]) / added(memory["dense"]) for kind in KINDS},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
