"""The metrics of a run, step by step: metrics.jsonl always, TensorBoard and Weights & Biases on request.

A resumed run takes the steps after its checkpoint again. Each tracker drops their older figures in its own
way, so that every step is told once.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any, Protocol

from pard2.errors import Pard2Error, first_line
from pard2.files import writing

_RUN_ID = "wandb-run"


class _Tracker(Protocol):
    """Where the figures of a step go beside the file."""

    def write(self, step: int, scalars: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class MetricsLog:
    """One record a step, into `output/metrics.jsonl` and wherever else is asked for.

    A context manager; only the main process has one.

    tensorboard: write events to `output/tensorboard`.
    wandb_project: report to this project; the run's id is kept in `output`, and a resumed run is the same run
        there.
    config: shown there with the run.

    Raises `Pard2Error` for a file that cannot be written or holds something else, for a package that is not
    installed, and for a project that cannot be reached.
    """

    def __init__(self, output: Path, tensorboard: bool, wandb_project: str | None, config: dict[str, Any]) -> None:
        self._output, self._tensorboard, self._wandb_project, self._config = output, tensorboard, wandb_project, config
        self._path = output / "metrics.jsonl"
        self._trackers: list[_Tracker] = []
        if tensorboard:
            _import_tensorboard()
        if wandb_project is not None:
            _import_wandb()
        with writing(self._path):
            self._path.touch()
            self._file = open(self._path, "rb+")  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._trackers:
            tracker.close()
        with contextlib.suppress(OSError):  # a full disk has been reported by write()
            self._file.close()

    def forget_after(self, done: int) -> None:
        """Drop what a killed run told of steps after `done`, and go on from there.

        Called once, before the first `write`.
        """
        end = 0
        for number, line in enumerate(iter(self._file.readline, b""), 1):
            if not line.endswith(b"\n"):  # torn by the kill
                break
            try:
                if json.loads(line)["step"] > done:
                    break
            except (ValueError, KeyError, TypeError):
                raise Pard2Error(f"{self._path}:{number} is no step's metrics; move the file away, or name another loop.output") from None
            end = self._file.tell()
        self._file.truncate(end)
        self._file.seek(end)
        if self._tensorboard:
            self._trackers.append(_TensorBoard(self._output / "tensorboard", done))
        if self._wandb_project is not None:
            self._trackers.append(_Wandb(self._output, self._wandb_project, self._config))

    def write(self, record: dict[str, Any]) -> None:
        """Tell of a step; it is on its way to the disk when this returns.

        record: `step`, numbers, lists by depth, and perhaps `evaluation`.
        """
        with writing(self._path, "; the last checkpoint is whole"):
            self._file.write(json.dumps(_finite(record)).encode() + b"\n")
            self._file.flush()
        values = {name: value for name, value in scalars(record) if name != "step"}
        for tracker in self._trackers:
            tracker.write(record["step"], values)


def step_figures(sums: list[float], k: int, target_asked: bool = True) -> dict[str, Any]:
    """A step's figures from its sums.

    sums: loss, weight, ce, kl, tokens, slots; then, k of each, by depth: correct, overlap, trained, answered.
        What follows is ignored.
    target_asked: else what compares with the target, `kl` and `overlap_by_depth`, is left out.

    `teacher_forced_al`, 1 + the sum of the accuracies' prefix products, is the acceptance length if the
    depths were independent.
    """
    loss, weight, ce, kl, tokens, slots, *by_depth = sums
    correct, overlap, trained, answered = (by_depth[part * k : (part + 1) * k] for part in range(4))
    accuracy = [round(hits / max(1.0, count), 4) for hits, count in zip(correct, answered, strict=True)]
    compared = {
        "kl": round(kl / weight, 5),
        "overlap_by_depth": [round(one / max(1.0, count), 4) for one, count in zip(overlap, trained, strict=True)],
    }
    return {
        "loss": round(loss / weight, 5),
        "ce": round(ce / weight, 5),
        **(compared if target_asked else {}),
        "accuracy_by_depth": accuracy,
        "teacher_forced_al": round(1 + sum(accumulate(accuracy, mul)), 4),
        "tokens": int(tokens),
        "answer_tokens": int(answered[0]),
        "slots": int(slots),
    }


def totals(path: Path, done: int, last: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the steps of a run come to: `tokens`, `answer_tokens`, `slots` and `seconds`.

    path: of its metrics.jsonl. done: how many steps it took. last: the record of one that is not written yet.

    A figure that not every step has, as in a run that an older version began, is None.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    steps = [json.loads(line) for line in lines] + ([] if last is None else [last])
    sums = {key: [step.get(key) for step in steps] for key in ("tokens", "answer_tokens", "slots", "seconds")}
    return {key: None if None in values or len(steps) != done else round(sum(values), 1) for key, values in sums.items()}


def _finite(value: Any) -> Any:
    """JSON has no NaN, which a skipped step's figures are: None in its place, however deep."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def scalars(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """A record's numbers under flat names.

    For instance `loss`, `accuracy/depth_3`, `evaluation/pard2-td/speedup`,
    `evaluation/pard2-td/accepted/position_0`. Lists are named `.._by_..`; intervals, which have no curve, and
    what is no number stay in the file alone.
    """
    for name, value in record.items():
        if name == "evaluation":
            for result in value or ():
                yield from scalars(result, f"evaluation/{result['method']}/")
        elif isinstance(value, list):
            stem, by, index = name.partition("_by_")
            if by:
                yield from ((f"{prefix}{stem}/{index}_{i}", float(one)) for i, one in enumerate(value) if one is not None)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, float(value)


def _import_tensorboard() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise Pard2Error("log.tensorboard needs the package tensorboard: pip install 'pard2[train]'") from None
    return SummaryWriter


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise Pard2Error("log.wandb needs the package wandb: pip install wandb") from None
    return wandb


class _TensorBoard:
    def __init__(self, directory: Path, done: int) -> None:
        # From purge_step on, readers drop what earlier event files hold.
        self._writer = _import_tensorboard()(str(directory), purge_step=done + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a kill then loses no more than of the file

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, output: Path, project: str, config: dict[str, Any]) -> None:
        wandb = _import_wandb()
        kept = output / _RUN_ID
        try:
            run_id = kept.read_text().strip() if kept.is_file() else None
            self._run = wandb.init(project=project, dir=str(output), config=config, id=run_id, resume="allow")
            kept.write_text(self._run.id)
        except wandb.Error as error:
            raise Pard2Error(f"log.wandb={project}: {first_line(error)}; run `wandb login`, or leave log.wandb out") from None
        # Its own count of steps never goes back, as a resumed run does: a repeated step would be dropped.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log({"step": step} | scalars)

    def close(self) -> None:
        self._run.finish()
