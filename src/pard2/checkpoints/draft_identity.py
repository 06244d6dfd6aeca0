"""Which draft it is, told by its files: what is measured of one draft is never told of another."""

import hashlib
import json
import os
from pathlib import Path

from pard2.errors import Pard2Error
from pard2.reading import read_json

_BLOCKS, _BLOCK = 64, 4096  # of each file: so many pieces of so many bytes, or the whole of a small one
# What a config says about where a model came from rather than what it computes.
_NO_MATTER = {"_name_or_path", "transformers_version"}


def draft_identity(directory: Path) -> str:
    """SHA-256 of a draft's config, and of name, size and scattered bytes of each file of weights.

    A copy has the same wherever it lies, and whatever else lies beside it; a draft of another training,
    precision or layout has another. Gigabytes take as little time as megabytes.

    Raises `Pard2Error` for a directory without a config, and for files that cannot be read.
    """
    config = read_json(directory / "config.json")
    if not isinstance(config, dict):
        raise Pard2Error(f"{directory / 'config.json'} is no JSON object; download it again")
    digest = hashlib.sha256(json.dumps({key: config[key] for key in sorted(config) if key not in _NO_MATTER}, sort_keys=True).encode())
    for file in sorted([*directory.glob("*.safetensors"), *directory.glob("*.bin")]):
        try:
            _add(digest, file)
        except OSError as error:
            raise Pard2Error(f"cannot read {file}: {error.strerror}") from None
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", file: Path) -> None:
    with open(file, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        digest.update(f"{file.name} {size}\n".encode())
        last = max(0, size - _BLOCK)
        for number in range(_BLOCKS):
            opened.seek(number * last // (_BLOCKS - 1))
            digest.update(opened.read(_BLOCK))
