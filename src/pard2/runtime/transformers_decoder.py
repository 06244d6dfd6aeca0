"""Ragged passes through transformers' own modeling code, for any architecture whose
attention can be replaced."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import transformers
from torch import Tensor, nn

from pard2.errors import Pard2Error
from pard2.hf import PreTrainedModel
from pard2.runtime.decoder import DecoderOutput
from pard2.runtime.hidden_states import HiddenStateRecorder
from pard2.runtime.token_batch import TokenBatch

# The batch that the running forward pass belongs to: transformers hands an attention function no place for it
# that every architecture passes on.
_current: ContextVar[TokenBatch] = ContextVar("ragged batch")
_ATTENTION = "pard2_ragged"


def _ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    position_ids: Tensor | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, H, N, D], key and value [1, KV,
    N, D] to ([1, N, H, D], None).

    Raises `Pard2Error` for what it is asked to do beside.
    """
    if attention_mask is not None:
        raise Pard2Error(f"{type(module).__name__} masks its attention in its own way")
    if is_causal is False or (hasattr(module, "is_causal") and not module.is_causal):
        raise Pard2Error(f"{type(module).__name__} lets tokens see those after them")
    for name, other in others.items():  # tensors change the attention, other arguments do not
        if isinstance(other, Tensor):
            raise Pard2Error(f"{type(module).__name__} has attention sinks" if name == "s_aux" else f"{type(module).__name__} attends by {name!r}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    assert isinstance(module.layer_idx, int)
    return _current.get().attend(module.layer_idx, queries, keys, values, scale, sliding_window, softcap)[None], None


class TransformersDecoder:
    """transformers' own forward pass, with nothing but the attention replaced."""

    def __init__(self, model: PreTrainedModel, states: HiddenStateRecorder) -> None:
        # The name is unknown to transformers' mask functions, so no mask is built.
        transformers.AttentionInterface.register(_ATTENTION, _ragged_attention)
        self.model = model
        self._states = states

    def run(self, batch: TokenBatch, embeddings: Tensor | None, logit_rows: Tensor | None, layers: tuple[int, ...] = ()) -> DecoderOutput:
        arguments = {
            "input_ids": batch.token_ids[None] if embeddings is None else None,
            "inputs_embeds": None if embeddings is None else embeddings[None],
            "position_ids": batch.positions[None],
            "use_cache": False,
        }
        logits = None
        with _attending(self.model, batch), self._states.recording(layers) as states:
            if logit_rows is None:
                self.model.base_model(**arguments)
            else:
                logits = self.model(**arguments, logits_to_keep=logit_rows).logits[0]
        features = states.features
        return DecoderOutput(logits, None if features is None else features[0])


@contextmanager
def _attending(model: PreTrainedModel, batch: TokenBatch) -> Iterator[None]:
    """Within, the model's attention is that of the batch."""
    config = model.config.get_text_config()
    usual, token = config._attn_implementation, _current.set(batch)
    config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = usual
        _current.reset(token)
