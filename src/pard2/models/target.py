"""The target: the frozen model whose distribution is preserved, and whose hidden states a draft may read."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pard2.errors import Pard2Error
from pard2.hf import Cache, PreTrainedModel, Tokenizer
from pard2.kernels.weight_format import WeightFormat
from pard2.models.decodable import Decodable
from pard2.models.identity import identity_keys
from pard2.runtime.decoder import Decoder, DecoderOutput
from pard2.runtime.hidden_states import HiddenStateRecorder
from pard2.runtime.support import context_limit, new_decoder
from pard2.runtime.token_batch import TokenBatch


@dataclass(frozen=True)
class TargetOutput:
    """One forward pass over T tokens.

    logits: [B, T or fewer, vocabulary] of the last positions asked for, None where none were.
    features: [B, T, len(layers) * hidden], None where no layers were asked for.
    last_state: [B, T, hidden], the state after the final norm, which the head turns into logits.
    """

    logits: Tensor | None
    features: Tensor | None
    last_state: Tensor


class WeightSource(Protocol):
    """What fills a model that has no weights yet, part by part, and knows afterwards which model it is."""

    def fill(self, module: nn.Module) -> None: ...

    def identity(self, name: str) -> dict[str, str]: ...


class Target(Decodable):
    """A causal LM that gives logits and, where they are asked for, hidden states of some layers.

    `layers` follow Hugging Face's `hidden_states`: 0 is the embedding's output, i the output of the
    i-th block, and the last one (-1) the state AFTER the final norm (METHOD: section 1).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer | None = None,
        name: str = "target",
        weight_format: WeightFormat = "plain",
        source: WeightSource | None = None,
    ) -> None:
        """source: of the weights of a model that has none, for our own formats."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self._states = HiddenStateRecorder(model)
        self.weight_format = weight_format
        self.origin = ""  # of its weights, in words, where a file held them in another form
        if source is not None:
            self.decoder = new_decoder(model, name, self._states, weight_format, source.fill)
            self.identity = source.identity(name)
        elif weight_format != "plain":
            _ = self.identity  # of weights that can be read
            _ = self.decoder  # at once, before anybody reads weights

    def new_decoder(self) -> Decoder:
        return new_decoder(self.model, self.name, self._states, self.weight_format)

    # --- what it is -------------------------------------------------------------------------------

    @cached_property
    def identity(self) -> dict[str, str] | None:
        """What tells it from another target of its shape (`identity.identity_keys`); None without weights,
        and for one read from codes by transformers: a draft may be made for the unquantised model."""
        return None if self.device.type == "meta" or hasattr(self.model, "is_quantized") else identity_keys(self.name, self.model.named_parameters())

    @property
    def causal_lm(self) -> PreTrainedModel:
        return self.model

    @property
    def config(self):
        return self.model.config.get_text_config()

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def decoder_dtype(self) -> torch.dtype:
        """Of activations, and so of the cache."""
        return self.model.dtype

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def blocks_name(self) -> str:
        """Name of the list of decoder blocks in the model's state dict."""
        return self._states.blocks_name

    @property
    def blocks(self) -> nn.ModuleList:
        return self._states.blocks

    @property
    def num_states(self) -> int:
        """Number of `hidden_states`: the embedding's output and one for each block."""
        return self._states.num_states

    @property
    def context_length(self) -> int:
        return context_limit(self.config)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Every id that ends an answer, from the generation config, the config and the tokenizer."""
        found: set[int] = set()
        for source in (self.model.generation_config, self.config, self.tokenizer):
            ids = source.eos_token_id if source is not None else None
            found.update([ids] if isinstance(ids, int) else ids or ())
        return frozenset(found)

    # --- features ---------------------------------------------------------------------------------

    def check_layers(self, layers: Iterable[int]) -> None:
        """Raises `Pard2Error` for a hidden state that this target does not have."""
        for layer in layers:
            if not -self.num_states <= layer < self.num_states:
                raise Pard2Error(
                    f"feature layer {layer} does not exist in {self.name!r}, which has {self.num_states} hidden states "
                    f"(-{self.num_states} to {self.num_states - 1})"
                )

    # --- running ----------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, input_ids: Tensor, cache: Cache | None = None, num_logits: int | None = None, layers: Sequence[int] = ()) -> TargetOutput:
        """Run new tokens through the model's own code.

        input_ids: [B, T].
        cache: of the tokens before them; None where there are none and nothing shall be kept.
        num_logits: how many of the last positions shall have logits; None for all, 0 for none.
        layers: hidden states wanted as features, in this order.

        Raises `Pard2Error` for a layer that this target does not have.
        """
        self.check_layers(layers)
        arguments: dict[str, Any] = {"input_ids": input_ids, "past_key_values": cache, "use_cache": cache is not None}
        logits = None
        with self._states.recording(layers) as states:
            if num_logits == 0:
                self.model.base_model(**arguments)
            else:
                logits = self.model(**arguments, logits_to_keep=num_logits or 0).logits
        return TargetOutput(logits, states.features, states.last_state)

    @torch.no_grad()
    def run(self, batch: TokenBatch, logit_rows: Tensor | None, layers: tuple[int, ...] = ()) -> DecoderOutput:
        """Run the new tokens of several sequences.

        batch: N tokens.
        logit_rows: [R] numbers of the tokens whose logits are wanted; None for none.
        layers: hidden states wanted as features.
        """
        return self.decoder.run(batch, None, logit_rows, layers)

    def head(self, state: Tensor) -> Tensor:
        """Logits [..., vocabulary] of states [..., hidden] after the final norm,
        as the model computes them."""
        return self._capped(self.model.get_output_embeddings()(state))

    def head_of(self, token_ids: Tensor) -> Callable[[Tensor], Tensor]:
        """`head` for these tokens [D] alone, whose rows are copied: logits [..., D]."""
        head = self.model.get_output_embeddings()
        weight, bias = head.weight[token_ids], None if head.bias is None else head.bias[token_ids]
        return lambda state: self._capped(F.linear(state.to(weight.dtype), weight, bias))

    def _capped(self, logits: Tensor) -> Tensor:
        cap = getattr(self.config, "final_logit_softcapping", None)  # Gemma; absent elsewhere
        return logits if cap is None else torch.tanh(logits / cap) * cap
