"""Which causal LMs ragged passes can run, and which decoder suits each."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from pard2.errors import Pard2Error, first_line
from pard2.kernels.weight_format import WeightFormat, convert_linears
from pard2.runtime.decoder import Decoder
from pard2.runtime.graphs import GraphedDecoder
from pard2.runtime.hidden_states import HiddenStateRecorder
from pard2.runtime.kv_cache import CacheRegion, KVCache
from pard2.runtime.llama_cpu_decoder import LlamaCpuDecoder, has_kernels
from pard2.runtime.llama_decoder import LlamaDecoder, is_llama_like
from pard2.runtime.token_batch import QuerySpan, TokenBatch
from pard2.runtime.transformers_decoder import TransformersDecoder
from pard2.runtime.windows import attention_windows


def new_decoder(model: PreTrainedModel, name: str, states: HiddenStateRecorder, weight_format: WeightFormat = "plain") -> Decoder:
    """The decoder that suits a model, whose linear layers it brings into `weight_format`.

    Runs a model of an architecture that the lean decoder does not know once, over three tokens.
    Raises `Pard2Error`, by name, for one whose attention cannot be taken over.
    """
    check_supported(model, name)
    if is_llama_like(model):
        return LlamaCpuDecoder(model, weight_format) if has_kernels(model, weight_format) else LlamaDecoder(model, weight_format)
    convert_linears(model, weight_format)
    decoder = TransformersDecoder(model, states)
    _try(decoder, name)
    return decoder


def can_capture(decoder: Decoder, device: torch.device) -> bool:
    """Whether a decoder's passes can be CUDA graphs: other decoders may decide on the host what to run, as experts' routers do."""
    return device.type == "cuda" and isinstance(decoder, (LlamaDecoder, GraphedDecoder))


def graphed(decoder: Decoder, name: str, device: torch.device, most_sequences: int) -> Decoder:
    """A decoder whose small passes are replayed as CUDA graphs. Raises `Pard2Error` where there is no CUDA, or for other than lean decoders."""
    if isinstance(decoder, GraphedDecoder):
        return decoder
    if device.type != "cuda":
        raise Pard2Error(f"`cuda_graphs` needs a CUDA device; {name!r} is on {device}")
    if not can_capture(decoder, device):
        raise Pard2Error(f"`cuda_graphs`: {name!r} is not of an architecture that can be captured (Llama, Qwen2, Qwen3, Mistral)")
    return GraphedDecoder(decoder, most_sequences)


def context_limit(config: PreTrainedConfig) -> int:
    """Positions that a model may be run over, prompt and answer together."""
    limit = config.max_position_embeddings
    rope = config.rope_parameters if hasattr(config, "rope_parameters") else None
    if rope and rope.get("rope_type") == "longrope":
        # Beyond this length transformers switches every sequence of a batch to other frequencies, its cached past excepted.
        return min(limit, int(rope.get("original_max_position_embeddings") or limit))
    return limit


def check_supported(model: PreTrainedModel, name: str) -> None:
    """Raises `Pard2Error` for an architecture that ragged passes would run wrongly, as far as its config tells; see `new_decoder`."""
    config = model.config.get_text_config()
    kind = type(model).__name__
    if model.config.is_encoder_decoder:
        raise Pard2Error(f"{name!r} is an encoder-decoder model ({kind}); only decoder-only language models are supported")
    other = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if other:
        raise Pard2Error(f"{name!r} ({kind}) has {other[0]} layers; only full and sliding-window attention are supported")
    if not model._supports_attention_backend:
        raise Pard2Error(f"{name!r} ({kind}) computes its attention in its own way, which cannot be batched; this architecture is not supported")
    if "dynamic" in _rope_types(config):
        raise Pard2Error(f"{name!r} ({kind}) has dynamic rotary frequencies, which change with the longest text of a batch; not supported")


class _Trial(TokenBatch):
    """A pass that notes which layers attended, and with what windows."""

    def __init__(self, cache: KVCache, segments: Sequence[QuerySpan], device: torch.device) -> None:
        super().__init__(cache, segments, device)
        self.attended: list[tuple[int, int | None]] = []

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None = None, softcap: float | None = None
    ) -> Tensor:
        self.attended.append((layer, window))
        return super().attend(layer, queries, keys, values, scale, window, softcap)


@torch.no_grad()
def _try(decoder: TransformersDecoder, name: str) -> None:
    """Run three rows of two sequences, so that what a config does not tell is found before the first text, and not by its being wrong.

    Raises `Pard2Error` unless every layer attends through the batch, once, with the window that its config names.
    """
    model = decoder.model
    windows = attention_windows(model.config.get_text_config())
    trial = _Trial(KVCache(len(windows), 3), [QuerySpan(CacheRegion(0, 2), 0, 2), QuerySpan(CacheRegion(2, 1), 0, 1)], model.device)
    tokens, wanted = torch.zeros(3, dtype=torch.long, device=model.device), torch.tensor([2], device=model.device)
    way = f"{name!r} ({type(model).__name__}) cannot be decoded in batches"
    try:
        logits = decoder.run(trial, tokens, None, wanted).logits
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a modeling file makes of rows that it did not expect
        raise Pard2Error(f"{way}: {first_line(error)}") from error
    if [layer for layer, _ in trial.attended] != list(range(len(windows))):
        raise Pard2Error(f"{way}: its layers do not each attend once, in the usual way")
    for (layer, window), said in zip(trial.attended, windows, strict=True):
        if window != said:
            raise Pard2Error(f"{way}: layer {layer} attends with a window of {window}, where its config says {said}")
    if logits is None or len(logits) != 1:
        raise Pard2Error(f"{way}: it does not give the logits of chosen positions")


def _rope_types(config: PreTrainedConfig) -> set[str]:
    """Kinds of rotary embedding in use; Gemma 3 has one for each kind of layer."""
    rope = config.rope_parameters if hasattr(config, "rope_parameters") else None
    if not rope:
        return set()
    each = [rope] if "rope_type" in rope else [part for part in rope.values() if isinstance(part, dict)]
    return {part["rope_type"] for part in each if "rope_type" in part}
