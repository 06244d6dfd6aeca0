"""The tensors beside a draft's LM (METHOD: section 7), in `warp_model.bin` or its safetensors form.

The released layout has the projection there. A draft that shares its target's vocabulary adds its mask
token's embedding and, if it can propose only some tokens, their ids; a learned mask feature is added, too.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pard2.errors import Pard2Error
from pard2.models.draft import DraftSpec
from pard2.models.target import Target

PROJECTION_FILES = ("warp_model.bin", "warp_model.safetensors")
WEIGHT, BIAS = "target_proj.weight", "target_proj.bias"
MASK_EMBEDDING = "pard2_mask_embedding"
MASK_FEATURE = "pard2_mask_feature"
VOCABULARY = "pard2_vocabulary"
USE_TI = "use it target-independent (`method` pard2-ti)"


def read_projection_file(directory: Path, name: str, required: bool) -> dict[str, Tensor]:
    """The tensors by name, read without executing what the file may hold; empty where there is no file.

    Raises `Pard2Error` for a file that is damaged, holds more than tensors, or is required and missing.
    """
    for file in (directory / f for f in PROJECTION_FILES):
        if not file.is_file():
            continue
        try:
            tensors = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # torch.load fails in as many ways as a file can be damaged
            raise Pard2Error(f"{file} is corrupt or holds more than tensors, so it was not loaded; download it again, or {USE_TI}") from None
        if not isinstance(tensors, dict) or not all(_lies_in_memory(tensor) for tensor in tensors.values()):
            raise Pard2Error(f"{file} is not a dictionary of tensors; download it again, or {USE_TI}")
        return tensors
    if required:
        raise Pard2Error(f"{name!r} has no projection ({' or '.join(PROJECTION_FILES)}); download it whole, or {USE_TI}")
    return {}


def _lies_in_memory(tensor: Any) -> bool:
    """Whether it is a whole tensor of numbers: a pickle may also hold sparse
    ones, and some without values."""
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32, torch.int64)
    whole = isinstance(tensor, Tensor) and tensor.layout is torch.strided and not tensor.is_nested and tensor.device.type == "cpu"
    return whole and tensor.dtype in kinds


def projection_of(tensors: dict[str, Tensor], spec: DraftSpec, hidden: int, target: Target, name: str) -> nn.Linear:
    """The projection, in float32. Raises `Pard2Error` unless it fits the spec, the draft and the target.

    hidden: width of the draft.
    """
    for layer in spec.target_layers:
        if not -target.num_states <= layer < target.num_states:
            raise Pard2Error(f"{name!r} wants hidden state {layer} of a target with {target.num_states}; was it trained for another? {USE_TI}")
    width = target.hidden_size * len(spec.target_layers)
    if spec.target_dim is not None and spec.target_dim != width:
        raise Pard2Error(
            f"{name!r} wants features {spec.target_dim} wide, {target.name!r} gives {width}: it was trained for another target; {USE_TI}"
        )
    weight, bias = tensors.get(WEIGHT), tensors.get(BIAS)
    if weight is None:
        raise Pard2Error(f"{name!r}: the projection file lacks `{WEIGHT}`; download it again, or {USE_TI}")
    if tuple(weight.shape) != (hidden, width):
        raise Pard2Error(f"{name!r}: `{WEIGHT}` is {list(weight.shape)}, expected {[hidden, width]}; {USE_TI}")
    if spec.bias != (bias is not None):
        fault = "lacks" if bias is None else "has"
        raise Pard2Error(f"{name!r}: config says pard2_proj_bias = {spec.bias}, the projection file {fault} a bias; {USE_TI}")
    linear = nn.Linear(width, hidden, bias=spec.bias)
    linear.load_state_dict({"weight": weight} | ({"bias": bias} if bias is not None else {}))
    return linear


def mask_feature_of(tensors: dict[str, Tensor], spec: DraftSpec, hidden: int, name: str) -> Tensor | None:
    """The learned mask feature [hidden], None without one.

    Raises `Pard2Error` where spec and file disagree.
    """
    vector = tensors.get(MASK_FEATURE)
    if spec.mask_feature != (vector is not None):
        fault = "lacks" if vector is None else "has"
        raise Pard2Error(f"{name!r}: config says {MASK_FEATURE} = {spec.mask_feature}, the projection file {fault} that vector; {USE_TI}")
    if vector is not None and tuple(vector.shape) != (hidden,):
        raise Pard2Error(f"{name!r}: `{MASK_FEATURE}` is {list(vector.shape)}, expected {[hidden]}; {USE_TI}")
    return vector


def mask_embedding_of(tensors: dict[str, Tensor], hidden: int, name: str) -> Tensor:
    """The mask token's embedding [hidden]. Raises `Pard2Error` where it is missing or of another shape."""
    if MASK_EMBEDDING not in tensors:
        raise Pard2Error(f"{name!r} shares its target's vocabulary but lacks `{MASK_EMBEDDING}`; download it again")
    vector = tensors[MASK_EMBEDDING]
    if vector.shape != (hidden,):
        raise Pard2Error(f"{name!r}: `{MASK_EMBEDDING}` is {list(vector.shape)}, expected {[hidden]}; download it again")
    return vector


def vocabulary_of(tensors: dict[str, Tensor], spec: DraftSpec, target: Target, name: str) -> Tensor | None:
    """Ids of the tokens that it can propose, [D]; None for all.

    Raises `Pard2Error` unless they are different.
    """
    token_ids = tensors.get(VOCABULARY)
    size = None if token_ids is None else len(token_ids)
    if size != spec.vocabulary_size:
        raise Pard2Error(
            f"{name!r}: config says pard2_vocabulary_size = {spec.vocabulary_size}, its `{VOCABULARY}` lists {size or 'no'} tokens; download it again"
        )
    if token_ids is not None and (len(token_ids.unique()) != size or token_ids.min() < 0 or token_ids.max() >= target.vocab_size):
        raise Pard2Error(f"{name!r}: its `{VOCABULARY}` is no list of different tokens of {target.name!r}; download it again")
    return token_ids
