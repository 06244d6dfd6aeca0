"""Hidden states of a transformers model, picked up on the way, without keeping
those that nobody asked for."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pard2.errors import Pard2Error
from pard2.hf import PreTrainedModel


class RecordedStates:
    """The hidden states of one pass that were asked for, [B, T, hidden] each, and the last one.

    Layers are numbered as Hugging Face's `hidden_states`: 0 is the embedding's output, i the output of the
    i-th block, and the last one (-1) the state AFTER the final norm (METHOD: section 1).
    """

    def __init__(self, layers: Sequence[int], num_states: int) -> None:
        self._numbers = [layer % num_states for layer in layers]
        self._last = num_states - 1
        self._found: dict[int, Tensor] = {}

    @property
    def features(self) -> Tensor | None:
        """[B, T, len(layers) * hidden], in the order asked for; None without layers."""
        return torch.cat([self._found[number] for number in self._numbers], dim=-1) if self._numbers else None

    @property
    def last_state(self) -> Tensor:
        """[B, T, hidden], after the final norm."""
        return self._found[self._last]

    def take_input(self, number: int) -> Callable[[nn.Module, tuple, dict], None]:
        """A hook that takes what a block is given as hidden state `number`."""

        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            self._found[number] = args[0] if args else kwargs["hidden_states"]

        return hook

    def take_last(self, _module: nn.Module, _args: tuple, output: Any) -> None:
        """A hook of the module around the blocks."""
        self._found[self._last] = output[0]


class HiddenStateRecorder:
    """Finds the blocks of a causal LM, and hooks them for as long as a pass lasts whose
    hidden states are wanted."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.blocks_name, self.blocks = decoder_blocks(model)
        # The module around the blocks ends with the final norm. It need not be
        # `base_model`, which OPT passes by.
        self._around = model.get_submodule(self.blocks_name.rpartition(".")[0])

    @property
    def num_states(self) -> int:
        return len(self.blocks) + 1

    @contextmanager
    def recording(self, layers: Sequence[int]) -> Iterator[RecordedStates]:
        """What the pass inside this block says on the way; nothing of it is kept here,
        whether it ends or fails."""
        states = RecordedStates(layers, self.num_states)
        with ExitStack() as hooks:
            for number in sorted({layer % self.num_states for layer in layers} - {len(self.blocks)}):
                # The input of block i is hidden state i.
                hooks.callback(self.blocks[number].register_forward_pre_hook(states.take_input(number), with_kwargs=True).remove)
            hooks.callback(self._around.register_forward_hook(states.take_last).remove)
            yield states


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of decoder blocks and its name in the model's state dict."""
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise Pard2Error(f"cannot find the {count} decoder blocks of {type(model).__name__}; this architecture is not supported")
