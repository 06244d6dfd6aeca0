"""A model's weight files: only safetensors inside its directory, compared with its
config before it is built."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from pard2.errors import Pard2Error, first_line
from pard2.hf import PreTrainedModel
from pard2.reading import read_json

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_names(directory: Path) -> list[str]:
    """`model.safetensors`, or else the files that the index names.

    Raises `Pard2Error` for any but safetensors files of the same directory.
    """
    if (directory / WHOLE).exists() or not (directory / INDEX).exists():
        return [WHOLE]
    index = read_json(directory / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    for name in places.values() if isinstance(places, dict) and places else [places]:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise Pard2Error(f"{INDEX} names {name!r}; only *.safetensors files of the same directory are read")
    return sorted(set(places.values()))


def open_weights(directory: Path) -> dict[str, Tensor]:
    """Every tensor by name, mapped from its file: its values are read when they are used.

    Raises `Pard2Error` for missing and corrupt files.
    """
    weights: dict[str, Tensor] = {}
    for name in weight_names(directory):
        try:
            weights |= load_file(directory / name)
        except Exception as error:  # SafetensorError, no file, or a dtype that torch lacks
            raise Pard2Error(f"{name} is corrupt or missing ({first_line(error)}); download it again") from None
    return weights


def wanted_weights(model: PreTrainedModel, shared_vocabulary: bool = False) -> dict[str, Tensor]:
    """What of a model's state dict its files must hold: neither a tied head nor a
    vocabulary that is the target's."""
    embedding, head = vocabulary_keys(model)
    elsewhere = {embedding, head} if shared_vocabulary else {head} if model.config.get_text_config().tie_word_embeddings else set()
    return {key: tensor for key, tensor in model.state_dict().items() if key not in elsewhere}


def vocabulary_keys(model: PreTrainedModel) -> tuple[str, str]:
    """State-dict keys of the embedding's and the head's weight."""
    names = {id(module): name for name, module in model.named_modules()}
    return names[id(model.get_input_embeddings())] + ".weight", names[id(model.get_output_embeddings())] + ".weight"


def check_weights(name: str, wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Raises `Pard2Error` for integers in place of numbers, and for fewer numbers than the model has.

    Names that transformers converts while it loads, as those of experts, are in one of the two only:
    transformers' own report tells which of them are missing.
    """
    for key, tensor in stored.items():
        if not tensor.is_floating_point() and (wanted[key].is_floating_point() if key in wanted else key.endswith(".weight")):
            raise Pard2Error(f"{name!r}: {key} is stored in {tensor.dtype}, as codes and not as numbers; name the unquantised model")
    if sum(tensor.numel() for tensor in wanted.values()) > sum(tensor.numel() for tensor in stored.values()):
        both = wanted.keys() & stored.keys()
        raise incomplete(name, wanted.keys() - both, {key for key in both if wanted[key].shape != stored[key].shape})


def incomplete(name: str, lacking: set[str], mismatched: set[str]) -> Pard2Error:
    """The error for a model whose files lack weights or have them in another shape; one of
    the two sets is not empty."""
    which = f"lacks {min(lacking)}" if lacking else f"has another shape for {min(mismatched)}"
    more = len(lacking) + len(mismatched) - 1
    return Pard2Error(f"{name!r}: the weight file {which}" + (f" and {more} more" if more else "") + "; download it again")
