"""Which causal LMs ragged passes can run, and which decoder suits each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pard2.errors import Pard2Error, first_line
from pard2.hf import PreTrainedConfig, PreTrainedModel
from pard2.kernels.weight_format import OWN_FORMATS, WeightFormat, convert_linears
from pard2.runtime.decoder import Decoder
from pard2.runtime.graphs import GraphedDecoder, new_capture
from pard2.runtime.hidden_states import HiddenStateRecorder
from pard2.runtime.kv_cache import CacheRegion, KVCache
from pard2.runtime.llama_cpu_decoder import LlamaCpuDecoder, has_kernels
from pard2.runtime.llama_decoder import Fill, LlamaDecoder, is_llama_like
from pard2.runtime.padded_batch import PaddedDecoder
from pard2.runtime.token_batch import QuerySpan, TokenBatch
from pard2.runtime.transformers_decoder import TransformersDecoder
from pard2.runtime.windows import attention_windows


def new_decoder(
    model: PreTrainedModel, name: str, states: HiddenStateRecorder, weight_format: WeightFormat = "plain", fill: Fill | None = None
) -> Decoder:
    """The decoder that suits a model, whose linear layers it brings into `weight_format`.

    fill: for a Llama-like model without weights in our own formats: gives a part of it its own.

    Runs a model of an architecture that the lean decoder does not know once, over three tokens.
    Raises `Pard2Error`, by name, for one whose attention cannot be taken over.
    """
    check_supported(model, name)
    decoder: Decoder
    if is_llama_like(model):
        if weight_format in OWN_FORMATS:
            from pard2.runtime.llama_panels_decoder import LlamaPanelsDecoder  # numba is an extra

            decoder = LlamaPanelsDecoder(model, weight_format, fill)
        else:
            decoder = (LlamaCpuDecoder if has_kernels(model, weight_format) else LlamaDecoder)(model, weight_format)
    else:
        convert_linears(model, weight_format)
        decoder = TransformersDecoder(model, states)
        _try(decoder, name)
    return PaddedDecoder(decoder) if model.device.type == "cuda" else decoder


def can_capture(decoder: Decoder, device: torch.device) -> bool:
    """Whether a decoder's passes can be CUDA graphs: other decoders may decide on the host what to
    run, as experts' routers do."""
    inner = decoder.decoder if isinstance(decoder, PaddedDecoder) else decoder
    return device.type == "cuda" and isinstance(inner, (LlamaDecoder, GraphedDecoder))


def graphed(decoder: Decoder, name: str, device: torch.device, most_sequences: int) -> Decoder:
    """A decoder whose small passes, of up to `most_sequences`, are replayed as CUDA graphs.

    Raises `Pard2Error` where there is no CUDA, or for an architecture that cannot be captured.
    """
    if isinstance(decoder, GraphedDecoder):
        return decoder
    if device.type != "cuda":
        raise Pard2Error(f"`cuda_graphs` needs a CUDA device; {name!r} is on {device}")
    if not can_capture(decoder, device):
        raise Pard2Error(f"`cuda_graphs`: {name!r} is not of an architecture that can be captured (Llama, Qwen2, Qwen3, Mistral)")
    return GraphedDecoder(decoder, most_sequences, new_capture())


def context_limit(config: PreTrainedConfig) -> int:
    """Positions that a model may be run over, prompt and answer together."""
    limit = config.max_position_embeddings
    rope = config.rope_parameters if hasattr(config, "rope_parameters") else None
    if rope and rope.get("rope_type") == "longrope":
        # Beyond this length transformers switches every sequence of a batch to other
        # frequencies, its cached past excepted.
        return min(limit, int(rope.get("original_max_position_embeddings") or limit))
    return limit


def check_supported(model: PreTrainedModel, name: str) -> None:
    """Raises `Pard2Error` for an architecture that ragged passes would run wrongly, as far as its config
    tells; see `new_decoder`."""
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

    def __init__(self, cache: KVCache, spans: Sequence[QuerySpan], token_ids: Tensor) -> None:
        super().__init__(cache, spans, token_ids)
        self.attended: list[tuple[int, int | None]] = []

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None = None, softcap: float | None = None
    ) -> Tensor:
        self.attended.append((layer, window))
        return super().attend(layer, queries, keys, values, scale, window, softcap)


@torch.no_grad()
def _try(decoder: TransformersDecoder, name: str) -> None:
    """Run three rows of two sequences, so that what a config does not tell is found before the first
    text, and not by its being wrong.

    Raises `Pard2Error` unless every layer attends through the batch, once, with the
    window that its config names.
    """
    model = decoder.model
    windows = attention_windows(model.config.get_text_config())
    tokens, wanted = torch.zeros(3, dtype=torch.long, device=model.device), torch.tensor([2], device=model.device)
    trial = _Trial(KVCache(len(windows), 3), [QuerySpan(CacheRegion(0, 2), 0, 2), QuerySpan(CacheRegion(2, 1), 0, 1)], tokens)
    way = f"{name!r} ({type(model).__name__}) cannot be decoded in batches"
    try:
        logits = decoder.run(trial, None, wanted).logits
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


# A tree whose nodes' places and positions differ much: eight children of the root, the last with a child and
# a grandchild, and one more child of the first.
_TREE = (-1, 0, 0, 0, 0, 0, 0, 0, 0, 8, 9, 1)
_PATHS = ((0, 8, 9, 10), (0, 1, 11))


@torch.no_grad()
def check_trees(decoder: Decoder, name: str) -> None:
    """Raises `Pard2Error`, by name, for a decoder that says something else of a tree's tokens than
    of the same tokens in a chain.

    Decoders of Llama's kind take trees. Of others, whose code is transformers', it is tried:
    positions that are counted and not read from `position_ids`, and scores that depend on where a key
    lies, as ALiBi's do, would show.
    """
    inner = decoder.decoder if isinstance(decoder, PaddedDecoder) else decoder
    if not isinstance(inner, TransformersDecoder):
        return
    model = inner.model
    layers, few = len(attention_windows(model.config.get_text_config())), 3  # tokens before the tree
    size = few + len(_TREE)
    text = (7 * torch.arange(size, device=model.device) + 1) % model.get_input_embeddings().weight.shape[0]

    def logits(cache: KVCache, token_ids: Tensor, *spans: QuerySpan) -> Tensor:
        found = decoder.run(TokenBatch(cache, spans, token_ids), None, torch.arange(len(token_ids), device=model.device)).logits
        assert found is not None, "new_decoder has tried that"
        return found.float()

    region = CacheRegion(0, size)
    cache = KVCache(layers, size)
    logits(cache, text[:few], QuerySpan(region, 0, few))
    tree = logits(cache, text[few:], QuerySpan(region, few, len(_TREE), _TREE))
    for path in _PATHS:
        nodes = torch.tensor(path, device=model.device)
        chain = logits(KVCache(layers, size), torch.cat([text[:few], text[few:][nodes]]), QuerySpan(region, 0, few + len(path)))[few:]
        if (tree[nodes] - chain).abs().mean() > (1e-3 if model.dtype == torch.float32 else 0.1) * chain.std():
            raise Pard2Error(
                f"{name!r} ({type(model).__name__}) cannot verify trees: its attention or its positions are not the chain's; use `tree` 0"
            )


def _rope_types(config: PreTrainedConfig) -> set[str]:
    """Kinds of rotary embedding in use; Gemma 3 has one for each kind of layer."""
    rope = config.rope_parameters if hasattr(config, "rope_parameters") else None
    if not rope:
        return set()
    each = [rope] if "rope_type" in rope else [part for part in rope.values() if isinstance(part, dict)]
    return {part["rope_type"] for part in each if "rope_type" in part}
