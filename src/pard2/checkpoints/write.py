"""Writing a draft checkpoint in the released layout (METHOD: section 7): a causal
LM and the tensors beside it.

A draft that shares its target's vocabulary can be written without embedding, head and tokenizer.
"""

import copy
import dataclasses
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pard2.checkpoints.draft_spec import is_spec_key, spec_keys
from pard2.checkpoints.eagle3 import save_eagle3
from pard2.checkpoints.projection_file import BIAS, MASK_EMBEDDING, MASK_FEATURE, PROJECTION_FILES, VOCABULARY, WEIGHT
from pard2.checkpoints.weight_files import WHOLE, vocabulary_keys
from pard2.files import whole_directory
from pard2.models.any_draft import AnyDraft
from pard2.models.draft import Draft, SharedEmbedding
from pard2.models.eagle3 import Eagle3Draft


def save_draft(draft: AnyDraft, directory: str | Path, dtype: torch.dtype | None = None, vocabulary: bool = True) -> None:
    """Write a checkpoint; the directory appears whole, replacing an older one.

    dtype: of the written tensors, by default as they are.
    vocabulary: False leaves out embedding, head and tokenizer, for a draft that shares its target's; with
        them any draft is an ordinary LM. An EAGLE-3 draft is written in its own layout, with what it owns.
    """
    if isinstance(draft, Eagle3Draft):
        save_eagle3(draft, directory, dtype)
        return
    shared = isinstance(draft.lm.get_input_embeddings(), SharedEmbedding)
    if not vocabulary and not shared:
        raise ValueError("only a draft that shares its target's vocabulary can be saved without one")
    config = copy.deepcopy(draft.lm.config)
    config.architectures = [type(draft.lm).__name__]
    config.dtype = str(dtype or draft.lm.dtype).removeprefix("torch.")
    for key in [key for key in vars(config) if is_spec_key(key)]:
        delattr(config, key)  # what another checkpoint said, from which this one was made
    if draft.spec is not None:
        size = None if vocabulary else draft.spec.vocabulary_size
        config.update(spec_keys(dataclasses.replace(draft.spec, shared_vocabulary=not vocabulary, vocabulary_size=size)))

    def written(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        kinds = {key: dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype for key, tensor in tensors.items()}
        return {key: tensor.detach().to("cpu", kinds[key]).clone().contiguous() for key, tensor in tensors.items()}

    with whole_directory(directory) as beside:
        config.save_pretrained(beside)
        save_file(written(_lm_tensors(draft, vocabulary)), beside / WHOLE, metadata={"format": "pt"})
        (beside / WHOLE).chmod(0o644)  # safetensors makes it the owner's alone
        extras = _tensors_beside(draft, vocabulary)
        if extras:
            torch.save(written(extras), beside / PROJECTION_FILES[0])
        if draft.lm.generation_config is not None:
            draft.lm.generation_config.save_pretrained(beside)
        if draft.tokenizer is not None and vocabulary:
            draft.tokenizer.save_pretrained(beside)


def _lm_tensors(draft: Draft, vocabulary: bool) -> dict[str, Tensor]:
    """The LM's tensors by name; with `vocabulary` also its target's tables, if it shares them."""
    embedding, head = draft.lm.get_input_embeddings(), draft.lm.get_output_embeddings()
    embedding_key, head_key = vocabulary_keys(draft.lm)
    tensors = {key: tensor for key, tensor in draft.lm.state_dict().items() if not key.endswith(".mask_row")}
    if isinstance(embedding, SharedEmbedding):
        whole = head if draft.short_head is None else draft.short_head.whole
        return tensors | ({embedding_key: embedding.weight, head_key: whole.weight} if vocabulary else {})
    if draft.lm.config.tie_word_embeddings:
        tensors.pop(head_key, None)
    return tensors


def _tensors_beside(draft: Draft, vocabulary: bool) -> dict[str, Tensor]:
    """What goes into the projection's file; without `vocabulary` also what of it is the draft's own."""
    tensors: dict[str, Tensor] = {}
    embedding = draft.lm.get_input_embeddings()
    if isinstance(embedding, SharedEmbedding) and not vocabulary:
        tensors[MASK_EMBEDDING] = embedding.mask_row
        if draft.short_head is not None:
            tensors[VOCABULARY] = draft.short_head.token_ids.int()
    if draft.projection is not None:
        tensors[WEIGHT] = draft.projection.weight
        if draft.projection.bias is not None:
            tensors[BIAS] = draft.projection.bias
    if draft.mask_feature is not None:
        tensors[MASK_FEATURE] = draft.mask_feature
    return tensors
