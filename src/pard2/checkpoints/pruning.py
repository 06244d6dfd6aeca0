"""New drafts: made of a small LM of the target's family, or, for targets that have none,
of the target's own layers."""

import dataclasses
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn

from pard2.checkpoints.layer_config import config_of_layers
from pard2.checkpoints.quantisation import check_quantisation
from pard2.checkpoints.read import without_vocabulary
from pard2.errors import Pard2Error
from pard2.hf import PreTrainedModel, Tokenizer
from pard2.models.draft import DEFAULT_SCALE, DEFAULT_TARGET_LAYERS, Draft, DraftSpec, neutral_row
from pard2.models.target import Target
from pard2.runtime.hidden_states import decoder_blocks

_COMPARED = 8  # tokens that a cut and its target are run over
_SHOWN_CANDIDATES = 8  # tokens that might serve as mask
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 3e-2  # of the largest logit, in float32 and in half precision; both run the same code


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """How a new draft takes in its target's features; each field is that of `DraftSpec`."""

    scale: float = DEFAULT_SCALE
    normalise_features: bool = False
    mask_feature: bool = False


_DEFAULTS = FeatureOptions()


def even_layers(count: int, total: int) -> list[int]:
    """`count` of `total` layers, evenly spaced, the first and the last among them.

    Raises `Pard2Error` unless 1 <= count <= total.
    """
    if not 1 <= count <= total:
        raise Pard2Error(f"`layers` {count}: the target has {total} layers")
    if count == 1:
        return [0]
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def default_target_layers(num_states: int) -> tuple[int, ...]:
    """The published choice (-1, -8, -16, -24), thinned to what a shallower target has."""
    return tuple(layer for layer in DEFAULT_TARGET_LAYERS if -layer <= num_states)


def unused_token(target: Target) -> int:
    """An id that no text contains: a padding row of the embedding behind the tokenizer's
    last token, or a reserved token.

    Raises `Pard2Error` where there is none to be sure of; it names the special tokens that are likely.
    """
    way_out = "name one that no text contains with `mask_token`"
    if target.tokenizer is None:
        raise Pard2Error(f"{target.name!r} has no tokenizer to find an unused token with; {way_out}")
    last = max(target.tokenizer.get_vocab().values())
    if last + 1 < target.vocab_size:
        return last + 1
    # Added tokens alone: a word of the language may read "reserved" as well.
    added = target.tokenizer.get_added_vocab()
    reserved = sorted(number for token, number in added.items() if "reserved" in token or "unused" in token)
    if not reserved:
        candidates = ", ".join(f"{number} ({token})" for token, number in _not_in_template(target, target.tokenizer)[:_SHOWN_CANDIDATES])
        likely = f"; special tokens that its chat template does not use: {candidates}" if candidates else ""
        raise Pard2Error(f"{target.name!r} has no padding row and no reserved token to serve as mask; {way_out}{likely}")
    return reserved[0]


def _not_in_template(target: Target, tokenizer: Tokenizer) -> list[tuple[str, int]]:
    """Special tokens, with their ids, that neither the chat template nor the end of an answer is made of."""
    template = str(tokenizer.chat_template or "")
    used = {*target.eos_token_ids, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    special = [(str(token), number) for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    return [(token, number) for token, number in special if token not in template and number not in used]


def cut_draft(
    target: Target,
    layers: list[int],
    mask_token: int | None,
    draft_tokens: int = 16,
    target_layers: tuple[int, ...] | None = None,
    shared_vocabulary: bool = False,
    vocabulary: Tensor | None = None,
    options: FeatureOptions | None = _DEFAULTS,
) -> Draft:
    """A draft made of the target's own layers, final norm, embedding and head.

    Its projection starts at zero, which makes the untrained draft the same in both modes.

    target: with plain weights, or on torch's `meta` device.
    layers: numbers of its blocks, rising.
    mask_token, draft_tokens, target_layers: as in `DraftSpec`; target_layers by
        default `default_target_layers`. No mask token makes it an ordinary LM with a vocabulary of its own.
    shared_vocabulary: go on using the target's embedding and head in place of copies, with an embedding
        of its own for the mask token.
    vocabulary: [D] ids of the only tokens that such a draft shall propose; by default all.
    options: of the features that it takes in; None for none and no projection (PARD).

    Raises `Pard2Error` for a layer or token that the target lacks, and where the draft would not
    compute what those layers compute in the target; on `meta`, which computes nothing, only their
    shapes and settings are compared.
    """
    check_quantisation(target.model.config, target.name, plain=True)
    total = target.num_states - 1
    if not layers:
        raise Pard2Error("`layers` names no layer")
    for layer in layers:
        if not 0 <= layer < total:
            raise Pard2Error(f"`layers`: {layer} is not a layer of {target.name!r}, which has {total} (0 to {total - 1})")
    if sorted(set(layers)) != list(layers):
        raise Pard2Error("`layers` must rise, each named once")
    if mask_token is not None and not 0 <= mask_token < target.vocab_size:
        raise Pard2Error(f"`mask_token` {mask_token}: {target.name!r} has token ids 0 to {target.vocab_size - 1}")
    if vocabulary is not None and not shared_vocabulary:
        raise ValueError("only a draft that shares its target's vocabulary can propose a part of it alone")
    size = None if vocabulary is None else len(vocabulary)
    spec = None if mask_token is None else _new_spec(target, mask_token, draft_tokens, target_layers, options, shared_vocabulary, size)

    config = config_of_layers(target.model.config, layers, target.name)
    if shared_vocabulary:
        lm = without_vocabulary(config, target.model.dtype)
    else:
        lm = transformers.AutoModelForCausalLM.from_config(config, dtype=target.model.dtype)
    _check_layers(target, lm, layers)
    _copy_layers(target, lm, layers, shared_vocabulary)
    draft = _new_draft(lm, spec, target.tokenizer, f"{target.name}[{','.join(map(str, layers))}]")
    if shared_vocabulary:
        draft.share_vocabulary(target.model.get_input_embeddings(), target.model.get_output_embeddings(), token_ids=vocabulary)
    elif spec is not None:
        _give_neutral_row(draft)
    draft = draft.to(target.device)
    if target.device.type != "meta":
        _check_logits(target, draft, layers)
    return draft


def as_parallel_draft(
    lm_draft: Draft,
    target: Target,
    mask_token: int,
    draft_tokens: int = 16,
    target_layers: tuple[int, ...] | None = None,
    options: FeatureOptions | None = _DEFAULTS,
) -> Draft:
    """An ordinary LM of the target's family as a draft with a mask token and, unless `options` is None, a
    projection that starts at zero.

    The two share the LM's weights. The other arguments: as for `cut_draft`.
    Raises `Pard2Error` for a token that the LM lacks or a layer that the target lacks.
    """
    if not 0 <= mask_token < lm_draft.vocab_size:
        raise Pard2Error(f"draft.mask_token={mask_token}: {lm_draft.name!r} has token ids 0 to {lm_draft.vocab_size - 1}")
    spec = _new_spec(target, mask_token, draft_tokens, target_layers, options)
    draft = _new_draft(lm_draft.lm, spec, lm_draft.tokenizer, lm_draft.name)
    _give_neutral_row(draft)
    return draft.to(target.device)


def _new_spec(
    target: Target,
    mask_token: int,
    draft_tokens: int,
    target_layers: tuple[int, ...] | None,
    options: FeatureOptions | None,
    shared_vocabulary: bool = False,
    vocabulary_size: int | None = None,
) -> DraftSpec:
    masked = DraftSpec(
        mask_token=mask_token,
        draft_tokens=draft_tokens,
        shared_vocabulary=shared_vocabulary,
        vocabulary_size=vocabulary_size,
        made_for=target.identity,
    )
    if options is None:
        return masked
    wanted = default_target_layers(target.num_states) if target_layers is None else target_layers
    for layer in wanted:
        if not -target.num_states <= layer < target.num_states:
            raise Pard2Error(f"target layer {layer} is not a hidden state of {target.name!r}, which has {target.num_states}")
    return dataclasses.replace(
        masked,
        target_layers=tuple(wanted),
        target_dim=target.hidden_size * len(wanted),
        scale=options.scale,
        normalise_features=options.normalise_features,
        mask_feature=options.mask_feature,
    )


def _new_draft(lm: PreTrainedModel, spec: DraftSpec | None, tokenizer: Tokenizer | None, name: str) -> Draft:
    """A draft of this LM whose projection, and mask feature if the spec wants them, are zero."""
    if spec is None or spec.target_layers is None:
        return Draft(lm, spec, None, tokenizer, name)
    hidden = lm.config.get_text_config().hidden_size
    projection = nn.Linear(spec.target_dim, hidden, bias=False)
    nn.init.zeros_(projection.weight)
    return Draft(lm, spec, projection, tokenizer, name, torch.zeros(hidden) if spec.mask_feature else None)


@torch.no_grad()
def _give_neutral_row(draft: Draft) -> None:
    table = draft.lm.get_input_embeddings().weight
    table[draft.spec.mask_token] = neutral_row(table)


def _check_layers(target: Target, lm: PreTrainedModel, layers: list[int]) -> None:
    """Raises `Pard2Error` unless each layer of `lm` has the shapes and settings that it has in the target.

    Its number may differ.
    """
    theirs, ours = (model.get_submodule(decoder_blocks(model)[0]) for model in (target.model, lm))
    for new, old in enumerate(layers):
        wanted, made = _traits(theirs[old]), _traits(ours[new])
        for trait in sorted(wanted.keys() | made.keys()):
            there, here = wanted.get(trait), made.get(trait)
            if there != here and (there, here) != (old, new):
                raise Pard2Error(
                    f"layer {old} of {target.name!r} ({lm.config.model_type}) cannot be cut out: its {trait} would change from {there} to {here}; "
                    "name other layers"
                )


def _traits(block: nn.Module) -> dict[str, object]:
    """Shapes of a layer's tensors, and what its modules keep of their config, by name."""
    traits: dict[str, object] = {key: tuple(tensor.shape) for key, tensor in block.state_dict().items()}
    for name, module in block.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, (bool, int, float, str)) and not key.startswith("_")}
        traits |= {f"{name}.{key}".lstrip("."): value for key, value in plain.items() if key != "training"}
    return traits


@torch.no_grad()
def _check_logits(target: Target, draft: Draft, layers: list[int]) -> None:
    """Raises `Pard2Error` unless the draft has the target's logits when the target's other layers do nothing.

    It leaves the draft in evaluation mode.
    """

    def skip(_block: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> Tensor | tuple:
        state = args[0] if args else kwargs["hidden_states"]
        return (state, *output[1:]) if isinstance(output, tuple) else state

    mask = None if draft.spec is None else draft.spec.mask_token
    tokens = [token for token in range(min(_COMPARED, target.vocab_size, target.context_length)) if token != mask]
    ids = torch.tensor([tokens], device=target.device)
    blocks = enumerate(target.model.get_submodule(target.blocks_name))
    hooks = [block.register_forward_hook(skip, with_kwargs=True) for number, block in blocks if number not in layers]
    try:
        said = target.forward(ids).logits
    finally:
        for hook in hooks:
            hook.remove()
    columns = torch.arange(target.vocab_size, device=target.device) if draft.short_head is None else draft.short_head.token_ids
    if mask is not None:
        columns = columns[columns != mask]  # whose row is the draft's own, perhaps in its head, too
    ours, theirs = draft.eval()(ids, None)[..., columns], said[..., columns]
    share = _TOLERANCE if ours.dtype == torch.float32 else _HALF_TOLERANCE
    tolerance = share * float(theirs.nan_to_num().abs().max())
    if not ours.isclose(theirs, rtol=0, atol=tolerance, equal_nan=True).all():
        raise Pard2Error(f"{draft.name}: a draft of these layers says something else than they say in the target; name other layers, or a draft.path")


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
