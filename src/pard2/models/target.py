"""The target: the frozen model whose distribution must be preserved, and the features it lends to the draft."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from pard2.errors import Pard2Error
from pard2.models.loading import load_causal_lm, load_tokenizer, parse_device, parse_dtype
from pard2.models.packed import pack_linears, should_pack


@dataclass(frozen=True)
class TargetOutput:
    """One forward pass over T tokens.

    logits: [B, T or fewer, vocabulary] of the last positions asked for, None where none were.
    features: [B, T, len(layers) * hidden], None without feature layers.
    last_state: [B, T, hidden], the state after the final norm, which the head turns into logits.
    """

    logits: Tensor | None
    features: Tensor | None
    last_state: Tensor


class Target:
    """A causal LM that yields logits and chosen hidden states without keeping the others.

    `layers` follow Hugging Face's `hidden_states`: 0 is the embedding's output, i the output of the
    i-th block, and the last one (-1) the state AFTER the final norm (METHOD: section 1).
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer | None = None, name: str = "target") -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self._layers: tuple[int, ...] = ()
        self._captured: dict[int, Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._base = model.base_model
        self.blocks_name, self._blocks = _decoder_blocks(model)
        self._base.register_forward_hook(self._capture_last)

    @classmethod
    def from_pretrained(
        cls, name: str, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None, pack: bool = True
    ) -> "Target":
        """Load by hub id, directory, `.gguf` file or `smollm2`.

        pack: let a CPU without bfloat16 arithmetic use packed linear layers; False keeps plain ones, whose weights
        can be read.
        """
        where, kind = parse_device(device), parse_dtype(dtype)
        if pack and where.type == "cpu":
            # With a mask, transformers copies keys and values for every group of heads; torch's CPU kernel needs no copies.
            # Training does not pass here.
            os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
        model = load_causal_lm(name, kind, where)
        if pack and should_pack(where, kind):
            pack_linears(model)
        return cls(model, load_tokenizer(name), name)

    # --- what it is -------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def config(self):
        return self.model.config.get_text_config()

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def num_states(self) -> int:
        """Number of `hidden_states`: the embedding's output and one for each block."""
        return len(self._blocks) + 1

    @property
    def context_length(self) -> int:
        return self.config.max_position_embeddings

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Every id that ends an answer, from the generation config, the config and the tokenizer."""
        found: set[int] = set()
        for source in (self.model.generation_config, self.config, self.tokenizer):
            ids = source.eos_token_id if source is not None else None
            found.update([ids] if isinstance(ids, int) else ids or ())
        return frozenset(found)

    # --- features ---------------------------------------------------------------------------------

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return self._layers

    def capture(self, layers: tuple[int, ...] | list[int]) -> None:
        """Choose the hidden states that every later forward pass returns as features, in this order.

        Raises `Pard2Error` for a layer that this target does not have.
        """
        for layer in layers:
            if not -self.num_states <= layer < self.num_states:
                raise Pard2Error(
                    f"feature layer {layer} does not exist in {self.name!r}, which has {self.num_states} hidden states "
                    f"(-{self.num_states} to {self.num_states - 1})"
                )
        for hook in self._hooks:
            hook.remove()
        self._layers, self._hooks = tuple(layers), []
        for index in sorted({layer % self.num_states for layer in layers}):
            if index < len(self._blocks):
                # The input of block i is hidden state i.
                self._hooks.append(self._blocks[index].register_forward_pre_hook(self._capture_input(index), with_kwargs=True))

    def _capture_input(self, index: int):
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            self._captured[index] = args[0] if args else kwargs["hidden_states"]

        return hook

    def _capture_last(self, _module: nn.Module, _args: tuple, output) -> None:
        self._captured[len(self._blocks)] = output[0]

    # --- running ----------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        cache: Cache | None = None,
        num_logits: int | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> TargetOutput:
        """Run T new tokens.

        input_ids: [B, T]. num_logits: logits of the last so many positions (None: all; 0: none).
        """
        arguments: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": cache,
            "use_cache": cache is not None,
        }
        logits = None
        if num_logits == 0:
            self._base(**arguments)
        else:
            logits = self.model(**arguments, logits_to_keep=num_logits or 0).logits
        captured, self._captured = self._captured, {}
        features = torch.cat([captured[layer % self.num_states] for layer in self._layers], dim=-1) if self._layers else None
        return TargetOutput(logits, features, captured[len(self._blocks)])

    def head(self, state: Tensor) -> Tensor:
        """Logits [..., vocabulary] of final states [..., hidden], as the model's own forward computes them."""
        logits = self.model.get_output_embeddings()(state)
        cap = getattr(self.config, "final_logit_softcapping", None)  # Gemma; absent elsewhere
        return logits if cap is None else torch.tanh(logits / cap) * cap


def _decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of decoder blocks and its name in the model's state dict."""
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise Pard2Error(f"cannot find the {count} decoder blocks of {type(model).__name__}; this architecture is not supported")
