"""The tensors of an EAGLE-3 draft's files, under the names of the model here, and what is wrong with them."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pard2.checkpoints.eagle3_config import Eagle3Keys
from pard2.checkpoints.weight_files import INDEX, WHOLE, incomplete, open_weights
from pard2.errors import Pard2Error

PICKLE = "pytorch_model.bin"
FILES = (WHOLE, INDEX, "model-*.safetensors", PICKLE)
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
_D2T, _T2D = "d2t", "t2d"
_OLDER = {"aux_norm_low.": "fc_norm.0.", "aux_norm_mid.": "fc_norm.1.", "aux_norm_high.": "fc_norm.2."}
# What other programs leave in such files and nothing here computes with.
_UNREAD = re.compile(r"rotary_emb\.|^verifier_(norm|lm_head)\.")


def read_tensors(directory: Path, name: str) -> dict[str, Tensor]:
    """Every tensor of a checkpoint's files by the name that it has here: `midlayer.`, no `model.`.

    Raises `Pard2Error` for missing and corrupt files, and a pickle that holds more than tensors.
    """
    tensors: dict[str, Tensor] = {}
    for key, tensor in _open(directory, name).items():
        if _UNREAD.search(key):
            continue
        ours = re.sub(r"^layers\.0\.", "midlayer.", key.removeprefix("model."))
        for older, newer in _OLDER.items():
            ours = ours.replace(older, newer)
        if re.match(r"layers\.\d", ours):
            raise Pard2Error(f"{name!r} holds {key}: it has more than one layer, and an EAGLE-3 draft has one here")
        if ours in tensors:
            raise Pard2Error(f"{name!r} holds {ours} twice, under two names; download it again")
        tensors[ours] = tensor
    return tensors


def _open(directory: Path, name: str) -> dict[str, Tensor]:
    if not (directory / WHOLE).exists() and not (directory / INDEX).exists() and (file := directory / PICKLE).is_file():
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # torch.load fails in as many ways as a file can be damaged
            raise Pard2Error(f"{file} is corrupt or holds more than tensors, so it was not loaded; download it again") from None
        if not isinstance(tensors, dict) or not all(isinstance(key, str) and _is_plain(one) for key, one in tensors.items()):
            raise Pard2Error(f"{file} is not a dictionary of tensors; download it again")
        return tensors
    try:
        return open_weights(directory)
    except Pard2Error as error:
        raise Pard2Error(f"{name!r}: {error}") from None


def _is_plain(tensor: object) -> bool:
    """Whether it is a whole tensor with values: a pickle may also hold sparse ones."""
    return isinstance(tensor, Tensor) and tensor.layout is torch.strided and not tensor.is_nested and tensor.device.type == "cpu"


def check_fuses(name: str, stored: Mapping[str, Tensor]) -> None:
    """Raises `Pard2Error` for a checkpoint without the matrix that makes it an EAGLE-3 draft."""
    if "fc.weight" not in stored:
        raise Pard2Error(f"{name!r} lacks `fc.weight`, which fuses the target's features: it is no whole EAGLE-3 draft; download it again")


def check_tensors(name: str, wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Raises `Pard2Error` unless the files hold the draft's weights in their shapes, and nothing else.

    wanted: the weights that a draft of its config has.
    """
    held = {key: tensor for key, tensor in stored.items() if key not in (_D2T, _T2D)}
    for key, tensor in sorted(held.items()):
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise Pard2Error(f"{name!r}: {key} is stored in {tensor.dtype}, as codes and not as numbers; name the unquantised draft")
    if unknown := sorted(held.keys() - wanted.keys()):
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise Pard2Error(f"{name!r}: its weight file holds {unknown[0]}{more}, which no EAGLE-3 draft of its config has; correct config.json")
    wrong = sorted(key for key in wanted.keys() & held.keys() if wanted[key].shape != held[key].shape)
    if wrong:
        shapes = f"{list(held[wrong[0]].shape)}, its config says {list(wanted[wrong[0]].shape)}"
        raise Pard2Error(f"{name!r}: {wrong[0]} is {shapes}; correct config.json, or download it again")
    if lacking := wanted.keys() - held.keys():
        raise incomplete(name, set(lacking), set())


def token_ids_of(name: str, keys: Eagle3Keys, stored: Mapping[str, Tensor]) -> Tensor:
    """[D] the target's id of each token of the draft, which `d2t` holds as differences to the draft's own.

    Raises `Pard2Error` for a `d2t` that is missing, of another size, or does not say different tokens of the
    target, and where `t2d` contradicts it.
    """
    size, vocabulary = keys.size, keys.config.vocab_size
    own = torch.arange(size)
    if _D2T not in stored:
        if size == vocabulary:
            return own
        raise Pard2Error(f"{name!r} lacks `d2t`, which says what its {size} tokens are of the target's {vocabulary}; download it again")
    offsets = stored[_D2T]
    if offsets.is_floating_point() or offsets.dtype is torch.bool or tuple(offsets.shape) != (size,):
        raise Pard2Error(f"{name!r}: `d2t` is {list(offsets.shape)} {offsets.dtype}, expected {[size]} integers; download it again")
    ids, offsets = own + offsets.long(), offsets.long()
    known = _known(name, stored, vocabulary)
    if _say_tokens(ids, vocabulary) and (known is None or _agrees(ids, known)):
        return ids
    if _say_tokens(offsets, vocabulary) and (known is None or _agrees(offsets, known)):
        raise Pard2Error(f"{name!r}: `d2t` holds the target's ids themselves, not their differences to the draft's ids; subtract 0, 1, 2, .. from it")
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise Pard2Error(f"{name!r}: `d2t` names token {ids.min() if ids.min() < 0 else ids.max()} of a target with {vocabulary}; download it again")
    if len(ids.unique()) < size:
        raise Pard2Error(f"{name!r}: `d2t` names {size - len(ids.unique())} of its tokens twice; download it again")
    raise Pard2Error(f"{name!r}: `t2d` marks other tokens than `d2t` names; download it again")


def _known(name: str, stored: Mapping[str, Tensor], vocabulary: int) -> Tensor | None:
    """[V] which of the target's tokens the draft can propose, by `t2d`; None without one."""
    known = stored.get(_T2D)
    if known is None:
        return None
    if known.is_floating_point() or tuple(known.shape) != (vocabulary,):
        raise Pard2Error(f"{name!r}: `t2d` is {list(known.shape)} {known.dtype}, expected {[vocabulary]} truth values; download it again")
    return known.bool()


def _say_tokens(ids: Tensor, vocabulary: int) -> bool:
    return bool(ids.min() >= 0) and bool(ids.max() < vocabulary) and len(ids.unique()) == len(ids)


def _agrees(ids: Tensor, known: Tensor) -> bool:
    return int(known.sum()) == len(ids) and bool(known[ids].all())


def vocabulary_tensors(token_ids: Tensor, vocabulary: int) -> dict[str, Tensor]:
    """`d2t` [D] and `t2d` [V] of the target's ids [D]."""
    ids = token_ids.detach().cpu().long()
    known = torch.zeros(vocabulary, dtype=torch.bool)
    known[ids] = True
    return {_D2T: ids - torch.arange(len(ids)), _T2D: known}
