"""What `pard2 train` shows on a terminal of 80 columns, of made-up figures, against what it was before.

Looked at by a person; after a change that is meant, write the new text into the file and look again.
"""

import io
from pathlib import Path

from rich.console import Console

from pard2.train.estimates import Memory, Parameters
from pard2.train.plan import Data, Disk, Plan, Work, render
from pard2.train.progress import TrainingProgress
from pard2.train.run_log import RunLog

GOLDEN = Path(__file__).parents[1] / "golden" / "tables" / "train.txt"
GB = 10**9


def plan() -> Plan:
    """Figures of an 8B's size, with all that a plan may say."""
    return Plan(
        method="pard2",
        target="Qwen/Qwen3-8B",
        draft="Qwen/Qwen3-0.6B",
        layers=28,
        draft_tokens=16,
        mask_token=151670,
        target_layers=(-1, -8, -16, -24),
        device="cuda",
        parameters=Parameters(target=8_190_735_360, trained=612_827_136, projection=16_777_216, frozen=0, muon=0),
        data=Data(
            conversations=49_936,
            tokens=25_012_345,
            predicted=19_876_543,
            skipped=0,
            cut=1_234,
            not_cached=0,
            rows=6_200,
            row_length=4096,
            slots=9941.3,
            notes={},
        ),
        steps=1550,
        rows_per_step=16,
        epochs=4.0,
        memory=Memory(
            target_weights=16 * GB,
            draft_weights=2 * GB,
            gradients=2 * GB,
            optimizer=5 * GB,
            average=0,
            target_states=GB // 6,
            target_pass=GB,
            activations=2 * GB,
            loss_chunks=2 * GB,
            autocast=GB,
            update=0,
        ),
        memory_free=79 * GB,
        disk=Disk(checkpoint=7 * GB, checkpoints=2, drafts=4 * GB, features=0, free=900 * GB),
        work=Work(target=1.05e15, draft=0.4e15, loss=0.3e15, optimizer=0.0, seconds=4.43),
        missing=("data.evaluation: cannot read data/held-out.jsonl: No such file or directory",),
    )


def test_it_looks_otherwise_at_80_columns():
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    figures = {"loss": 1.234, "teacher_forced_al": 3.21, "tokens": 64_029, "slots": 159_061, "seconds": 4.8, "wait_seconds": 0.1}
    td = {"method": "pard2-td", "acceptance_length": 2.71, "acceptance_length_interval": [2.43, 3.02], "speedup": 1.82, "prompts": 32}
    screen, clock = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None, soft_wrap=True), Clock()
    log = RunLog(screen)
    log.print(render(plan()))
    progress = TrainingProgress(log, 1550, 0, clock)
    for step in range(1, 251):
        clock.now += 5.0
        evaluation = [td, td | {"method": "pard2-ti", "acceptance_length": 2.5, "speedup": 1.7}] if step == 250 else None
        progress.update({"step": step, **figures, "memory_bytes": 32_112_854_314, "evaluation": evaluation})
    progress.doing("writing a checkpoint")
    clock.now += 7.0
    screen.print(progress._view())
    shown = "".join(line.rstrip() + "\n" for line in screen.file.getvalue().splitlines())
    assert shown == GOLDEN.read_text()
