"""Which causal LMs ragged passes can run, and which decoder suits each."""

from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from pard2.errors import Pard2Error
from pard2.models.decoder import Decoder
from pard2.models.lean_decoder import LeanDecoder, is_lean
from pard2.models.packed import pack_linears
from pard2.models.states import StateRecorder
from pard2.models.transformers_decoder import TransformersDecoder


def new_decoder(model: PreTrainedModel, name: str, states: StateRecorder, pack: bool = False) -> Decoder:
    """The decoder that suits a model. pack: pack its linear layers for a CPU without bfloat16 arithmetic (`packed`).

    Raises `Pard2Error`, by name, for an architecture whose attention cannot be taken over.
    """
    check_supported(model, name)
    if is_lean(model):
        return LeanDecoder(model, pack)
    if pack:
        pack_linears(model)
    return TransformersDecoder(model, states)


def context_limit(config: PreTrainedConfig) -> int:
    """Positions that a model may be run over, prompt and answer together."""
    limit = config.max_position_embeddings
    rope = config.rope_parameters if hasattr(config, "rope_parameters") else None
    if isinstance(rope, dict) and rope.get("rope_type") == "longrope":
        # Beyond this length transformers switches every sequence of a batch to other frequencies, its cached past excepted.
        return min(limit, int(rope.get("original_max_position_embeddings") or limit))
    return limit


def check_supported(model: PreTrainedModel, name: str) -> None:
    """Raises `Pard2Error` for an architecture that ragged passes would run wrongly."""
    config = model.config.get_text_config()
    kind = type(model).__name__
    if model.config.is_encoder_decoder:
        raise Pard2Error(f"{name!r} is an encoder-decoder model ({kind}); only decoder-only language models are supported")
    other = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if other:
        raise Pard2Error(f"{name!r} ({kind}) has {other[0]} layers; only full and sliding-window attention are supported")
    if not model._supports_attention_backend:
        raise Pard2Error(f"{name!r} ({kind}) computes its attention in its own way, which cannot be batched; this architecture is not supported")
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and rope.get("rope_type") == "dynamic":
        raise Pard2Error(f"{name!r} ({kind}) has dynamic rotary frequencies, which change with the longest text of a batch; not supported")
