"""Where a draft comes from: a small LM of the target's family, or, for targets that have none, the target's own layers."""

import copy
import dataclasses

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from pard2.errors import Pard2Error
from pard2.models.checkpoint import without_vocabulary
from pard2.models.draft import DEFAULT_SCALE, DEFAULT_TARGET_LAYERS, Draft, DraftSpec, neutral_row
from pard2.models.quantisation import check_quantisation
from pard2.models.target import Target


def even_layers(count: int, total: int) -> list[int]:
    """`count` of `total` layers, evenly spaced, the first and the last among them.

    Raises `Pard2Error` unless 1 <= count <= total.
    """
    if not 1 <= count <= total:
        raise Pard2Error(f"--layers {count}: the target has {total} layers")
    if count == 1:
        return [0]
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def default_target_layers(num_states: int) -> tuple[int, ...]:
    """The published choice (-1, -8, -16, -24), thinned to what a shallower target has."""
    return tuple(layer for layer in DEFAULT_TARGET_LAYERS if -layer <= num_states)


def unused_token(target: Target) -> int:
    """An id that no text contains: a padding row of the embedding behind the tokenizer's last token, or a reserved token.

    Raises `Pard2Error` where there is none to be sure of.
    """
    way_out = "name one that no text contains with --mask-token ID (draft.mask_token in a run)"
    if target.tokenizer is None:
        raise Pard2Error(f"{target.name!r} has no tokenizer to find an unused token with; {way_out}")
    last = max(target.tokenizer.get_vocab().values())
    if last + 1 < target.vocab_size:
        return last + 1
    # Added tokens alone: a word of the language may read "reserved" as well.
    added = target.tokenizer.get_added_vocab()
    reserved = sorted(number for token, number in added.items() if "reserved" in token or "unused" in token)
    if not reserved:
        raise Pard2Error(f"{target.name!r} has no padding row and no reserved token to serve as mask; {way_out}")
    return reserved[0]


def cut_draft(
    target: Target,
    layers: list[int],
    mask_token: int,
    draft_tokens: int = 16,
    target_layers: tuple[int, ...] | None = None,
    scale: float = DEFAULT_SCALE,
    shared_vocabulary: bool = False,
    *,
    normalise_features: bool = False,
    mask_feature: bool = False,
    vocabulary: Tensor | None = None,
) -> Draft:
    """A draft made of the target's own `layers`, final norm, embedding and head, with a projection that starts at zero.

    A zero projection makes the untrained draft the same in both modes. shared_vocabulary: keep
    using the target's embedding and head, with a row of its own for the mask token, in place of copies; vocabulary: [D] the only tokens
    that such a draft shall propose. The other options: see `DraftSpec`. The target must not be packed. Raises `Pard2Error` for a layer or
    token that the target lacks.
    """
    check_quantisation(target.model.config, target.name, plain=True)
    total = target.num_states - 1
    if not layers:
        raise Pard2Error("--layers names no layer")
    for layer in layers:
        if not 0 <= layer < total:
            raise Pard2Error(f"--layers: {layer} is not a layer of {target.name!r}, which has {total} (0 to {total - 1})")
    if sorted(set(layers)) != list(layers):
        raise Pard2Error("--layers must rise, each named once")
    if not 0 <= mask_token < target.vocab_size:
        raise Pard2Error(f"--mask-token {mask_token}: {target.name!r} has token ids 0 to {target.vocab_size - 1}")
    if vocabulary is not None and not shared_vocabulary:
        raise ValueError("only a draft that shares its target's vocabulary can propose a part of it alone")
    spec = _new_spec(target, mask_token, draft_tokens, target_layers, scale, shared_vocabulary, normalise_features, mask_feature)
    if vocabulary is not None:
        spec = dataclasses.replace(spec, vocabulary_size=len(vocabulary))

    config = copy.deepcopy(target.model.config)
    text = config.get_text_config()
    text.num_hidden_layers = len(layers)
    if getattr(text, "layer_types", None) is not None:  # Gemma, Qwen: one attention kind for each layer
        text.layer_types = [text.layer_types[layer] for layer in layers]
    if shared_vocabulary:
        lm = without_vocabulary(config, target.model.dtype)
    else:
        lm = AutoModelForCausalLM.from_config(config, dtype=target.model.dtype)
    _copy_layers(target, lm, layers, shared_vocabulary)
    draft = _new_draft(lm, spec, target.tokenizer, f"{target.name}[{','.join(map(str, layers))}]")
    if shared_vocabulary:
        draft.share_vocabulary(target.model.get_input_embeddings(), target.model.get_output_embeddings(), token_ids=vocabulary)
    else:
        _give_neutral_row(draft)
    return draft.to(target.device)


def as_parallel_draft(
    lm_draft: Draft,
    target: Target,
    mask_token: int,
    draft_tokens: int = 16,
    target_layers: tuple[int, ...] | None = None,
    scale: float = DEFAULT_SCALE,
    *,
    normalise_features: bool = False,
    mask_feature: bool = False,
) -> Draft:
    """An ordinary LM of the target's family as a draft with a mask token and a projection that starts at zero; it lends its weights.

    The options: see `DraftSpec`. Raises `Pard2Error` for a token that the LM lacks or a layer that the target lacks.
    """
    if not 0 <= mask_token < lm_draft.vocab_size:
        raise Pard2Error(f"draft.mask_token={mask_token}: {lm_draft.name!r} has token ids 0 to {lm_draft.vocab_size - 1}")
    spec = _new_spec(target, mask_token, draft_tokens, target_layers, scale, False, normalise_features, mask_feature)
    draft = _new_draft(lm_draft.lm, spec, lm_draft.tokenizer, lm_draft.name)
    _give_neutral_row(draft)
    return draft.to(target.device)


def _new_spec(
    target: Target,
    mask_token: int,
    draft_tokens: int,
    target_layers: tuple[int, ...] | None,
    scale: float,
    shared_vocabulary: bool,
    normalise_features: bool,
    mask_feature: bool,
) -> DraftSpec:
    wanted = default_target_layers(target.num_states) if target_layers is None else target_layers
    for layer in wanted:
        if not -target.num_states <= layer < target.num_states:
            raise Pard2Error(f"target layer {layer} is not a hidden state of {target.name!r}, which has {target.num_states}")
    width = target.hidden_size * len(wanted)
    options = (shared_vocabulary, normalise_features, mask_feature)
    return DraftSpec(mask_token, draft_tokens, tuple(wanted), width, scale, False, *options, made_for=target.identity)


def _new_draft(lm: PreTrainedModel, spec: DraftSpec, tokenizer: Tokenizer | None, name: str) -> Draft:
    """With a projection, and a mask feature if the spec wants one, of zeros."""
    hidden = lm.config.get_text_config().hidden_size
    projection = nn.Linear(spec.target_dim, hidden, bias=False)
    nn.init.zeros_(projection.weight)
    return Draft(lm, spec, projection, tokenizer, name, torch.zeros(hidden) if spec.mask_feature else None)


@torch.no_grad()
def _give_neutral_row(draft: Draft) -> None:
    table = draft.lm.get_input_embeddings().weight
    table[draft.spec.mask_token] = neutral_row(table)


def _copy_layers(target: Target, lm: nn.Module, layers: list[int], shared_vocabulary: bool) -> None:
    source = target.model.state_dict()
    blocks = target.blocks_name + "."
    wanted = {}
    for key in lm.state_dict():
        if key.startswith(blocks):
            index, rest = key.removeprefix(blocks).split(".", 1)
            wanted[key] = source[f"{blocks}{layers[int(index)]}.{rest}"]
        elif source[key].shape == lm.state_dict()[key].shape:
            wanted[key] = source[key]
    lm.load_state_dict(wanted, strict=not shared_vocabulary)
