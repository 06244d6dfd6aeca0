"""The processes that train one draft together: one by default, several where a launcher has started them.

`accelerate launch` and `torchrun` both work. The rest of the trainer knows a rank, a sum over all processes,
and a module that gathers gradients; in a run of one process, all three cost nothing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from pard2.checkpoints.loading import parse_device
from pard2.errors import Pard2Error, first_line

Value = TypeVar("Value")


class Processes:
    """This process among the others.

    rank: its number, 0 for the main one, which alone writes.
    count: how many there are.
    device: of this one.
    """

    def __init__(self, device: str | None, sharding: str) -> None:
        """Join the others, where a launcher has started several.

        device: as `loop.device`; several processes get theirs by rank, unless it is `cpu`.
        sharding: as `loop.sharding`.

        Raises `Pard2Error` for a device that several processes cannot share, and where accelerate is missing.
        """
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        if self.count == 1:
            if sharding != "none":
                raise Pard2Error(f"loop.sharding={sharding} needs several processes; start them with accelerate launch or torchrun")
            self.rank, self.device, self._accelerator = 0, parse_device(device), None
            return
        if device not in (None, "cpu", "cuda"):
            raise Pard2Error(f"loop.device={device} names one device for {self.count} processes; leave it out, or say cpu")
        try:
            from accelerate import Accelerator
        except ImportError:
            raise Pard2Error("training in several processes needs accelerate: pip install 'pard2[train]'") from None
        # Where nobody says cpu, accelerate takes processes without GPUs for one each of their own.
        self._accelerator = Accelerator(cpu=parse_device(device).type == "cpu")
        self.rank, self.device = self._accelerator.process_index, self._accelerator.device
        self._sharded = sharding == "fsdp"

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wrap(self, module: nn.Module, blocks: nn.ModuleList) -> nn.Module:
        """`module`, made to average its gradients over the processes.

        blocks: the layers, which sharding shares out one by one.
        """
        if self._accelerator is None:
            return module
        if not self._sharded:
            return self._accelerator.prepare_model(module, device_placement=False)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.count,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module

    @contextmanager
    def gathering(self, wrapped: nn.Module, last: bool) -> Iterator[None]:
        """Around a forward and a backward pass, which gathers gradients only if it is the step's last.

        Sharded gradients are gathered each time: kept whole, they might not fit.
        """
        held = self._accelerator is not None and not self._sharded and not last
        with self._accelerator.no_sync(wrapped) if held else nullcontext():
            yield

    def sum(self, values: Tensor) -> Tensor:
        """`values`, summed in place over all processes."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def from_main(self, value: Value | None) -> Value:
        """The main process's value, everywhere. Any picklable object; it comes from our own processes."""
        if self.count == 1:
            assert value is not None
            return value
        box: list[Any] = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def agree(self, number: int, message: str) -> None:
        """Raises `Pard2Error` with this message unless all processes name the same number."""
        difference = torch.tensor([float(number != self.from_main(number))], device=self.device)
        if self.sum(difference) > 0:  # told to all: one that left alone would keep the others waiting
            raise Pard2Error(message)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process runs the block before the others do, so that they find what it wrote."""
        with nullcontext() if self._accelerator is None else self._accelerator.main_process_first():
            yield

    @contextmanager
    def together(self) -> Iterator[None]:
        """Turns the loss of another process, which ends a collective with an error, into one line.

        Leaves the group in the end.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count > 1 and any(word in str(error) for word in ("Connection closed", "Connection reset", "NCCL", "Broken pipe", "Timed out")):
                raise Pard2Error(
                    f"another process of this run has ended ({first_line(error)}); the same command resumes from the last checkpoint"
                ) from None
            raise
        finally:
            if self._accelerator is not None:
                self._accelerator.end_training()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of one that is shared out, others as they are; detached. Every process must call it."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def with_values(like: Tensor, values: Tensor) -> Tensor:
    """A tensor of these values on the device of `like`, and shared out in the same manner.

    Raises RuntimeError for another shape or type.
    """
    if values.shape != like.shape or values.dtype != like.dtype:
        raise RuntimeError(f"shape {list(values.shape)} in place of {list(like.shape)}, {values.dtype} in place of {like.dtype}")
    values = values.to(like.device)
    return distribute_tensor(values, like.device_mesh, like.placements) if isinstance(like, DTensor) else values.clone()
