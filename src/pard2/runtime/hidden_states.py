"""Hidden states of a transformers model, picked up on the way, without keeping those that nobody asked for."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pard2.errors import Pard2Error


class HiddenStateRecorder:
    """Hooks on the blocks of a causal LM that keep chosen hidden states of its latest pass.

    Layers are numbered as Hugging Face's `hidden_states`: 0 is the embedding's output, i the output of the
    i-th block, and the last one (-1) the state AFTER the final norm (METHOD: section 1).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.blocks_name, self.blocks = decoder_blocks(model)
        self.layers: tuple[int, ...] = ()
        self._captured: dict[int, Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        # The module around the blocks ends with the final norm. It need not be `base_model`, which OPT passes by.
        model.get_submodule(self.blocks_name.rpartition(".")[0]).register_forward_hook(self._capture_last)

    @property
    def num_states(self) -> int:
        return len(self.blocks) + 1

    def choose(self, layers: tuple[int, ...]) -> None:
        """Record these states, in this order, from now on."""
        if layers == self.layers:
            return
        for hook in self._hooks:
            hook.remove()
        self.layers, self._hooks = layers, []
        for index in sorted({layer % self.num_states for layer in layers}):
            if index < len(self.blocks):
                # The input of block i is hidden state i.
                self._hooks.append(self.blocks[index].register_forward_pre_hook(self._capture_input(index), with_kwargs=True))

    def take(self) -> tuple[Tensor | None, Tensor]:
        """Features [B, T, len(layers) * hidden] (None without layers) and last state [B, T, hidden] of the pass just run."""
        captured, self._captured = self._captured, {}
        features = torch.cat([captured[layer % self.num_states] for layer in self.layers], dim=-1) if self.layers else None
        return features, captured[len(self.blocks)]

    def _capture_input(self, index: int):
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            self._captured[index] = args[0] if args else kwargs["hidden_states"]

        return hook

    def _capture_last(self, _module: nn.Module, _args: tuple, output) -> None:
        self._captured[len(self.blocks)] = output[0]


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of decoder blocks and its name in the model's state dict."""
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise Pard2Error(f"cannot find the {count} decoder blocks of {type(model).__name__}; this architecture is not supported")
