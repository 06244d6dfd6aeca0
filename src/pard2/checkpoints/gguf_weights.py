"""The tensors of a GGUF file under the names of a transformers model, expanded one at a time.

For int8, which needs no other copy of them: the model is made without weights, and each of its parts gets
them right before it is brought into its form (`LlamaDecoder`).
"""

import ctypes
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pard2.errors import Pard2Error, first_line
from pard2.hf import PreTrainedModel
from pard2.models.identity import chosen_tensors, identity_of, scattered

_PIECE = 2**18  # numbers that are expanded at once; the library takes several times their bytes
_EVERY = 64  # rows, of which one tells how far int8 is from them
_PERMUTED = ("llama", "mistral")  # whose rows of queries and keys the format interleaves, for its own way of rotating them


class GgufWeights:
    """What fills a model that has no weights yet.

    identity: of the model, once it is whole (`identity.identity_keys`).
    int8_distance: of int8 from the file's own values, root mean square over that of the values; told by every
        64th row of each matrix that was filled.
    """

    def __init__(self, path: Path, model: PreTrainedModel, dtype: torch.dtype) -> None:
        """model: on the `meta` device.

        Raises `Pard2Error` for a file that lacks some of its weights, or has other shapes.
        """
        from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map

        self._model, self._dtype, self._config = model, dtype, model.config
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        try:
            reader = GGUFReader(path)
            held = {tensor.name: tensor for tensor in reader.tensors}
            architecture = str(reader.fields["general.architecture"].contents())
            kind = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
        except Exception as error:  # as many as a file can be damaged in
            raise Pard2Error(f"{path} cannot be read as a GGUF model: {first_line(error)}") from None
        self._permuted = architecture in _PERMUTED
        known = get_tensor_name_map(kind, model.config.num_hidden_layers)
        self._tensors: dict[str, Any] = {}
        for name, parameter in model.named_parameters():
            stem, _, last = name.rpartition(".")
            tensor = held.get(f"{known.get_name(stem)}.{last}")
            if tensor is None or list(reversed(tensor.shape.tolist())) != list(parameter.shape):
                found = "is not there" if tensor is None else f"has the shape {list(reversed(tensor.shape.tolist()))}"
                raise Pard2Error(f"{path} cannot be read as a GGUF model: {name}, {list(parameter.shape)}, {found}")
            self._tensors[name] = tensor
        self.format = _most_bytes(self._tensors.values())
        self._chosen = chosen_tensors(list(self._tensors))
        self._samples: dict[str, Tensor] = {}
        self._squares = torch.zeros(2, dtype=torch.float64)  # of what int8 changes, and of the values

    def fill(self, module: nn.Module) -> None:
        """Give a part of the model its weights; parts that have theirs keep them."""
        for owner in module.modules():
            for parameter in list(owner._parameters.values()):
                if parameter is not None and parameter.device.type == "meta":
                    self._fill_all(parameter, self._expanded(self._names[id(parameter)]))
        _trim()

    def _fill_all(self, empty: nn.Parameter, tensor: Tensor) -> None:
        """Wherever the model has a parameter: a head may be its embedding table."""
        filled = nn.Parameter(tensor, requires_grad=False)
        for owner in self._model.modules():
            for key, parameter in owner._parameters.items():
                if parameter is empty:
                    owner._parameters[key] = filled

    def _expanded(self, name: str) -> Tensor:
        from gguf import dequantize

        from pard2.kernels.panels import quantised  # numba is an extra

        tensor, shape = self._tensors[name], list(reversed(self._tensors[name].shape.tolist()))
        expanded = torch.empty(shape, dtype=self._dtype)
        rows = max(1, _PIECE // shape[-1]) if len(shape) > 1 else shape[0]
        for start in range(0, shape[0], rows):
            piece = dequantize(tensor.data[start : start + rows], tensor.tensor_type)
            expanded[start : start + rows] = torch.from_numpy(piece.reshape(-1, *shape[1:]).copy())
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if self._permuted and heads is not None:
            count = getattr(self._config, heads)
            expanded = expanded.view(count, shape[0] // count // 2, 2, *shape[1:]).transpose(1, 2).reshape(shape)
        if name in self._chosen:
            self._samples[name] = scattered(expanded, self._chosen[name], first=1)
        if expanded.dim() == 2:
            some = expanded[::_EVERY]
            values, scale = quantised(some)
            self._squares += torch.stack([part.double().square().sum() for part in (values * scale[:, None] - some.float(), some)])
        return expanded

    @property
    def int8_distance(self) -> float:
        return float((self._squares[0] / self._squares[1]).sqrt())

    def identity(self, name: str) -> dict[str, str]:
        return identity_of(name, [self._samples[tensor] for tensor in self._chosen])


def _trim() -> None:
    """Give back what was freed: glibc would keep it in pieces that fit nothing, as much as all weights."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def stored_format(path: Path) -> str:
    """In which form most of a file's bytes are, such as Q4_0."""
    from gguf import GGUFReader

    return _most_bytes(GGUFReader(path).tensors)


def _most_bytes(tensors: Iterable[Any]) -> str:
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_bytes)
    return sizes.most_common(1)[0][0]
