"""Which model it is, told by some of its weights: names and shapes are those of a fine-tuned copy as well."""

import hashlib
import json
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from pard2.errors import Pard2Warning
from pard2.hf import PreTrainedModel

NAME_KEY, SAMPLES_KEY = "pard2_target", "pard2_target_samples"
_SAMPLES, _MOST_TENSORS = 256, 1024  # of a model: values, at least one of each tensor
# What a config says about where a model came from and how it is used, rather than what it computes.
_NO_MATTER = {"_name_or_path", "architectures", "dtype", "transformers_version", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id"}


def weights_hash(model: PreTrainedModel) -> str:
    """Of the config, and of some values of every tensor as they are: another precision gives another hash."""
    config = {key: value for key, value in model.config.get_text_config().to_diff_dict().items() if key not in _NO_MATTER}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(scattered(tensor, 256, first=0).cpu().numpy().tobytes())
    return digest.hexdigest()


def identity_keys(name: str, weights: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """What the config of a draft says of the target that it is made for: its name,
    and some values of its weights.

    The values are bfloat16 in hexadecimal; in whatever dtype a model is loaded, it
    has the same but for rounding.

    weights: the plain parameters by name; integer codes of quantised ones are left out.
    """
    tensors = {key: tensor for key, tensor in weights if tensor.is_floating_point() and tensor.element_size() > 1}
    return identity_of(name, [scattered(tensors[key], count, first=1) for key, count in chosen_tensors(list(tensors)).items()])


def chosen_tensors(names: list[str]) -> dict[str, int]:
    """Of which tensors an identity holds values, and how many, in its order."""
    chosen = sorted(names)[:: 1 + len(names) // _MOST_TENSORS]
    return {name: max(1, _SAMPLES // len(chosen)) for name in chosen}


def identity_of(name: str, samples: Iterable[Tensor]) -> dict[str, str]:
    """`identity_keys` of what `scattered` takes, from the second value on, of each of `chosen_tensors`."""
    values = torch.cat([torch.empty(0), *(sample.cpu() for sample in samples)])
    # A directory may be moved, and nobody else has it.
    return {
        NAME_KEY: Path(name).resolve().name if Path(name).is_dir() else name,
        SAMPLES_KEY: values.bfloat16().view(torch.int16).numpy().tobytes().hex(),
    }


_WITHOUT_FEATURES = "`method` pard2-ti does without the target's features"


def warn_of_another(draft: str, made_for: dict[str, str] | None, target: dict[str, str] | None, way_out: str = _WITHOUT_FEATURES) -> None:
    """Warn (`Pard2Warning`) of a draft that was trained on another target's features; it
    is lossless all the same.

    way_out: how the line ends.
    """
    if made_for and made_for[SAMPLES_KEY] and target and not _same(made_for[SAMPLES_KEY], target[SAMPLES_KEY]):
        warnings.warn(
            f"the draft {draft!r} was made for another target ({made_for[NAME_KEY]!r}, whose weights are not those of {target[NAME_KEY]!r}): "
            f"less of what it proposes may be accepted; {way_out}",
            Pard2Warning,
            stacklevel=3,
        )


def _same(ours: str, theirs: str) -> bool:
    if ours == theirs or len(ours) != len(theirs):
        return ours == theirs
    with suppress(ValueError):  # a damaged one is another's
        one, other = (torch.frombuffer(bytearray.fromhex(words), dtype=torch.bfloat16).float() for words in (ours, theirs))
        return torch.allclose(one, other, rtol=0.01, atol=1e-6, equal_nan=True)
    return False


def scattered(tensor: Tensor, count: int, first: int) -> Tensor:
    """Up to `count` values of a tensor, in float32; evenly spaced ones might all lie in one column."""
    places = torch.arange(first, first + min(count, tensor.numel()), device=tensor.device) * 2_654_435_761 % max(1, tensor.numel())
    return tensor.detach().reshape(-1)[places].float()
