"""Reading a draft checkpoint of the released layout (METHOD: section 7), strictly, for a target.

A directory is a plain Hugging Face causal LM and the tensors beside it (`projection_file`). A
draft that shares its target's vocabulary has neither embedding nor head;
`pard2_shared_vocabulary` in its config says so.
"""

import copy
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

from pard2.checkpoints.draft_spec import read_spec
from pard2.checkpoints.eagle3 import is_eagle3, load_eagle3
from pard2.checkpoints.embedded import EMBEDDED, embedded_draft
from pard2.checkpoints.foreign import refuse_others
from pard2.checkpoints.loading import Tokenizer, config_keys, load_causal_lm, load_config, load_errors, load_tokenizer, model_directory
from pard2.checkpoints.projection_file import USE_TI, mask_embedding_of, mask_feature_of, projection_of, read_projection_file, vocabulary_of
from pard2.checkpoints.weight_choice import choose_format
from pard2.checkpoints.weight_files import WHOLE, check_weights, wanted_weights
from pard2.errors import Pard2Error
from pard2.hf import PreTrainedConfig, PreTrainedModel
from pard2.kernels.weight_format import WeightFormat
from pard2.models.any_draft import AnyDraft
from pard2.models.draft import Draft, DraftSpec
from pard2.models.identity import warn_of_another
from pard2.models.target import Target


def load_draft(
    name: str,
    target: Target,
    dtype: torch.dtype,
    target_dependent: bool | None = None,
    weight_format: WeightFormat | None = None,
    sequences: int = 1,
    device: torch.device | None = None,
) -> AnyDraft:
    """Load a draft for a target and check that the two fit.

    name: a directory, hub id or `smollm2`.
    target_dependent: True requires the projection, False leaves it out, None loads it if there is one.
    weight_format, sequences: as for `load_target`; int8 is among what is chosen from.
    device: by default the target's.

    Raises `Pard2Error`, saying what would work, for a missing or ill-shaped projection, missing
    `pard2_target_layers`, a vocabulary or tokenizer that is not the target's, a corrupt file, or a pickle
    that holds more than tensors. Warns of a draft whose features are another target's.
    """
    if name == EMBEDDED:
        name = embedded_draft()
    keys = config_keys(name)
    refuse_others(keys, name)
    if is_eagle3(keys):
        return load_eagle3(name, target, dtype, weight_format, sequences)
    config = load_config(name)
    spec = read_spec(config.to_dict(), name)
    if target_dependent:
        _check_target_dependent(spec, config, name)
    tokenizer = load_tokenizer(name)
    check_vocabulary(name, config.get_text_config().vocab_size, tokenizer, target)
    directory = checkpoint_directory(name)
    shared = spec is not None and spec.shared_vocabulary
    dependent = target_dependent is not False and spec is not None and spec.target_layers is not None
    extras = read_projection_file(directory, name, required=dependent) if dependent or shared else {}
    lm = _load_without_vocabulary(directory, name, config, dtype) if shared else load_causal_lm(name, dtype, device or target.device)
    hidden = lm.config.get_text_config().hidden_size
    projection = mask_feature = None
    if dependent:
        projection, mask_feature = projection_of(extras, spec, hidden, target, name).to(dtype), mask_feature_of(extras, spec, hidden, name)
    draft = Draft(lm, spec, projection, tokenizer or target.tokenizer, name, None if mask_feature is None else mask_feature.to(dtype))
    if shared:
        mask_embedding = mask_embedding_of(extras, hidden, name)
        if hidden != target.hidden_size:
            raise Pard2Error(f"{name!r} shares the vocabulary of a target {hidden} wide; {target.name!r} is {target.hidden_size}")
        tables = target.model.get_input_embeddings(), target.model.get_output_embeddings()
        draft.share_vocabulary(*tables, mask_embedding.to(dtype), vocabulary_of(extras, spec, target, name))
    if dependent or shared:
        warn_of_another(name, spec.made_for, target.identity)
    # The dtype was given to each part: cast as a whole, the draft would lose its rotary frequencies' digits.
    draft = draft.to(device or target.device).eval().requires_grad_(False)
    draft.convert(choose_format(weight_format, draft.lm, dtype, name, sequences, draft=True))
    return draft


def _check_target_dependent(spec: DraftSpec | None, config: PreTrainedConfig, name: str) -> None:
    """Raises `Pard2Error` for a draft that has no target-dependent mode."""
    if spec is not None and spec.target_layers is not None:
        return
    if spec is not None and config.to_dict().get("pard2"):
        raise Pard2Error(f"{name!r} lacks `pard2_target_layers` in its config.json; add it, or {USE_TI}")
    raise Pard2Error(f"{name!r} is not a PARD-2 draft, so it has no target-dependent mode; leave `method` away for the best that it can do")


def check_vocabulary(name: str, vocab_size: int, tokenizer: Tokenizer | None, target: Target) -> None:
    """Raises `Pard2Error` unless the draft's token ids mean what the target's mean."""
    if tokenizer is None or target.tokenizer is None:
        if vocab_size != target.vocab_size:
            raise Pard2Error(
                f"{name!r} has a vocabulary of {vocab_size}, the target {target.name!r} one of {target.vocab_size}; "
                "a draft must come from the target's own family"
            )
        return
    ours, theirs = tokenizer.get_vocab(), target.tokenizer.get_vocab()
    # A mask token may be added or renamed; a token that both have must have one id.
    differing = sum(theirs.get(token, number) != number for token, number in ours.items())
    common = len(ours.keys() & theirs.keys())
    if differing or common < 0.95 * max(len(ours), len(theirs)):
        raise Pard2Error(
            f"the tokenizer of {name!r} is not that of the target {target.name!r} "
            f"({common} of {len(theirs)} tokens in common, {differing} with another id); a draft must come from the target's own family"
        )


def _load_without_vocabulary(directory: Path, name: str, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The LM of a shared-vocabulary draft, with one-row tables in place of embedding and head."""
    try:
        tensors = load_file(directory / WHOLE)
    except Exception:  # as many as a file can be damaged in
        raise Pard2Error(f"{name!r}: {WHOLE} is missing or corrupt; download it again") from None
    with load_errors(name), torch.device("meta"):
        own = wanted_weights(without_vocabulary(config, dtype), shared_vocabulary=True)
    for key, tensor in own.items():
        if key not in tensors:
            raise Pard2Error(f"{name!r}: {WHOLE} lacks {key}; download it again")
        if tensors[key].shape != tensor.shape:
            raise Pard2Error(f"{name!r}: {key} is {list(tensors[key].shape)}, its config says {list(tensor.shape)}; download it again")
    check_weights(name, own, tensors)
    lm = without_vocabulary(config, dtype)
    lm.load_state_dict({key: tensors[key].to(dtype) for key in own}, strict=False)
    return lm


def without_vocabulary(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A causal LM of this config whose tables have a single row, to be replaced by
    `Draft.share_vocabulary`."""
    small = copy.deepcopy(config)
    small.vocab_size, small.pad_token_id, small.tie_word_embeddings = 1, None, False
    lm = transformers.AutoModelForCausalLM.from_config(small, dtype=dtype)
    lm.config.vocab_size, lm.config.pad_token_id = config.vocab_size, config.pad_token_id
    return lm


def checkpoint_directory(name: str) -> Path:
    """Where a draft lies on this disk, downloaded first if need be. Raises `Pard2Error` if there is none.

    name: a directory, hub id or `smollm2`.
    """
    if name == EMBEDDED:
        return Path(embedded_draft())
    return model_directory(name, "*.json", "*.safetensors", "*.bin", "*.jinja")
