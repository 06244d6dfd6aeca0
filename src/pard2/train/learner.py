"""The draft in training, with its optimizer: what a step changes, saved, restored and written as a draft.

It does not know what it is trained on. Every process has one, and all of them must call `checkpoint` and
`save_draft`: the weights may be shared out among them.
"""

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from pard2.checkpoints.write import save_draft
from pard2.config import TrainConfig
from pard2.errors import Pard2Error
from pard2.files import whole_directory
from pard2.models.any_draft import AnyDraft
from pard2.models.draft import Draft
from pard2.train.attention import AttentionKind
from pard2.train.optimizer import Optimizer, WeightAverage
from pard2.train.origin import Origin
from pard2.train.packed_loss import PackedLoss
from pard2.train.processes import Processes, whole, with_values
from pard2.train.run_checkpoint import RunCheckpoint, RunProgress, run_record


class Learner:
    """The draft and its optimizer.

    module: the `PackedLoss` to call, as the processes wrap it.
    average: of the weights, None without one.
    """

    def __init__(self, draft: AnyDraft, config: TrainConfig, processes: Processes, attention: AttentionKind, size: int | None) -> None:
        """A draft with its initial weights.

        config: with the number of steps.
        size: of the draft's `Teacher`.
        """
        self.draft, self._config, self._processes = draft, config, processes
        draft.train()
        checkpointing = config.loop.activation_checkpointing
        if checkpointing and isinstance(draft, Draft):
            draft.lm.gradient_checkpointing_enable({"use_reentrant": False})
        self._sharded = config.loop.sharding == "fsdp"
        # A sharded draft is neither saved nor decoded with; this copy is filled with its weights for that.
        self._copy = copy.deepcopy(draft).cpu() if self._sharded and processes.is_main else None
        precision = torch.bfloat16 if config.loop.precision == "bfloat16" else torch.float32
        loss = PackedLoss(draft, config.objective, attention, precision, size, checkpointing)
        self.module = processes.wrap(loss, draft.blocks)
        trainable = {name: parameter for name, parameter in draft.named_parameters() if parameter.requires_grad}
        self.optimizer = Optimizer(trainable, config.optimizer, draft.tables)
        self.average = None if config.optimizer.ema is None else WeightAverage(trainable, config.optimizer.ema)

    def checkpoint(self, progress: RunProgress, origin: Origin) -> RunCheckpoint:
        """All that a later process needs to go on."""
        return RunCheckpoint(
            progress=progress,
            steps=self._config.loop.steps,
            weights={name: whole(value).cpu() for name, value in self.draft.state_dict().items()},
            # An entry for each parameter, as the loss of one would not be seen otherwise.
            optimizer={name: {} for name in self.optimizer.parameters} | self.optimizer.state_dict(),
            average={} if self.average is None else self.average.state_dict(),
            origin=origin,
        )

    def restore(self, checkpoint: RunCheckpoint) -> None:
        """Take the weights of a checkpoint, and what the optimizer kept of earlier steps.

        Raises `Pard2Error` for a checkpoint of another model.
        """
        try:
            weights = self.draft.state_dict()
            same_parameters = checkpoint.origin is None or checkpoint.optimizer.keys() == self.optimizer.parameters.keys()
            if weights.keys() != checkpoint.weights.keys() or not same_parameters:
                raise KeyError
            with torch.no_grad():
                for name, value in weights.items():
                    value.copy_(with_values(value, checkpoint.weights[name]))
            self.optimizer.load_state_dict(checkpoint.optimizer)
            if self.average is not None:
                self.average.load_state_dict(checkpoint.average)
        except (AttributeError, KeyError, ValueError, RuntimeError):
            raise Pard2Error(
                f"{self._config.loop.output} holds a damaged checkpoint, or a run with other models under the same names; "
                "name another loop.output, or remove it"
            ) from None

    def save_draft(self, directory: Path, done: int, origin: Origin, trained: dict[str, Any]) -> None:
        """Write the draft as it stands, or the mean of its weights, in the released layout.

        done, trained: steps taken and what they come to, for the record that goes with it.
        """
        with self.average.in_place() if self.average is not None else nullcontext():
            weights = {name: whole(value) for name, value in self.draft.state_dict().items()} if self._sharded else None
            if not self._processes.is_main:
                return
            if self._copy is not None:
                self._copy.load_state_dict(weights)
            with whole_directory(directory) as beside:
                save_draft(self._copy or self.draft, beside, torch.bfloat16, vocabulary=not self._config.shares_tables)
                (beside / "training.json").write_text(json.dumps(run_record(self._config, done, origin) | trained, indent=1))
