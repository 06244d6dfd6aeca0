"""Hidden states of conversations in safetensors files, found again by their tokens.

A shard holds several records side by side: `tokens` [N] int32, `features` [N, F], perhaps `last_state`
[N, H], `offsets` [n + 1], `keys` [n, 16]. A record's key is the hash of its token ids, never its number
or name, and the ids are compared at every read. Shards appear whole, under names of their own, and each
says what made it; so no index can be stale or torn: several processes may write, and a kill loses the
shard that was being gathered.
"""

import contextlib
import hashlib
import os
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pard2.errors import Pard2Error
from pard2.files import writing

_OPEN_SHARDS = 64
_KEY_BYTES = 16


@dataclass(frozen=True)
class StateRecord:
    """One conversation of N tokens.

    tokens: [N] int32.
    features: [N, F].
    last_state: [N, H], None where it is a part of the features.
    """

    tokens: np.ndarray
    features: Tensor
    last_state: Tensor | None

    @property
    def key(self) -> bytes:
        return record_key(self.tokens)


def record_key(tokens: np.ndarray) -> bytes:
    return hashlib.sha256(tokens.tobytes()).digest()[:_KEY_BYTES]


class Shards:
    """The shards of a directory."""

    def __init__(self, directory: Path, made_by: str, widths: dict[str, int], dtype: torch.dtype) -> None:
        """None of them is read yet: see `find`.

        directory: need not exist yet.
        made_by: what all shards must say.
        widths: of `features`, and of `last_state` where it is stored.
        dtype: of both.
        """
        self.directory = directory
        self._made_by, self._widths, self._dtype = made_by, widths, dtype
        self._index: dict[bytes, tuple[str, int, int]] = {}  # shard, first and one past the last row
        self._seen: set[str] = set()
        self._opened = lru_cache(_OPEN_SHARDS)(self._open)

    def __len__(self) -> int:
        """Records."""
        return len(self._index)

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

    def find(self) -> None:
        """Take up the shards that have appeared since.

        Raises `Pard2Error` for one that is damaged or that something else made.
        """
        for path in sorted(self.directory.glob("states-*.safetensors")):
            if path.name in self._seen:
                continue
            try:
                file = self._opened(path.name)
                made_by = (file.metadata() or {}).get("made_by")
                records = self._records(file) if made_by == self._made_by else {}
            except (OSError, SafetensorError, ValueError, TypeError, IndexError):
                raise self._damaged(path.name) from None
            if made_by != self._made_by:
                raise Pard2Error(f"features.cache {self.directory}: {path.name} was made by another target than the rest; name another directory")
            for key, (start, stop) in records.items():
                self._index.setdefault(key, (path.name, start, stop))
            self._seen.add(path.name)

    def read(self, tokens: np.ndarray, record: str) -> StateRecord | None:
        """The record of these tokens on the CPU, None where there is none.

        record: what an error calls it.

        Raises `Pard2Error` if other tokens are stored under its key, or its file is damaged.
        """
        key = record_key(tokens)
        if key not in self._index:
            return None
        shard, start, stop = self._index[key]
        try:
            file = self._opened(shard)
            # Copies, since the file is mapped: whoever reads waits for the disk, not the pass that uses them.
            rows = {name: file.get_slice(name)[start:stop].clone() for name in ("tokens", *self._widths)}
        except (OSError, SafetensorError):
            raise self._damaged(shard) from None
        if not np.array_equal(rows["tokens"].numpy(), tokens):
            raise Pard2Error(f"features.cache {self.directory}: {shard} holds other tokens than record {record} has under its key; delete that file")
        if not all(rows[name].isfinite().all() for name in self._widths):
            raise Pard2Error(
                f"features.cache {self.directory}: {shard} holds numbers of record {record} that are not finite; delete that file, "
                "and choose another target.dtype if it comes again"
            )
        return StateRecord(tokens, rows["features"], rows.get("last_state"))

    def write(self, records: Sequence[StateRecord]) -> None:
        """A new shard of these records, which are on the CPU.

        Raises `Pard2Error` if it cannot be written, as on a full disk.
        """
        ends = np.cumsum([len(record.tokens) for record in records]).tolist()
        tensors = {
            "tokens": torch.from_numpy(np.concatenate([record.tokens for record in records])),
            "features": torch.cat([record.features for record in records]),
            "offsets": torch.tensor([0, *ends]),
            "keys": torch.from_numpy(np.frombuffer(b"".join(record.key for record in records), np.uint8).reshape(-1, _KEY_BYTES).copy()),
        }
        last_states = [record.last_state for record in records if record.last_state is not None]
        if last_states:
            tensors["last_state"] = torch.cat(last_states)
        name = f"states-{uuid.uuid4().hex[:16]}.safetensors"
        beside = beside_path(self.directory, name)
        try:
            with writing_states(self.directory):
                save_file(tensors, beside, {"format": "pt", "made_by": self._made_by})
                beside.chmod(0o644)  # safetensors makes it the owner's alone
                beside.rename(self.directory / name)
        finally:
            beside.unlink(missing_ok=True)
        self._seen.add(name)
        self._index |= {record.key: (name, end - len(record.tokens), end) for record, end in zip(records, ends, strict=True)}

    def _records(self, file: Any) -> dict[bytes, tuple[int, int]]:
        """First and one past the last row of each record by its key.

        Raises `ValueError` for arrays of other types or shapes than those written.
        """
        offsets, keys = file.get_tensor("offsets"), file.get_tensor("keys")
        ends = offsets.tolist()
        rows, pairs = ends[-1], list(pairwise(ends))
        wanted = {"tokens": ([rows], torch.int32), **{name: ([rows, width], self._dtype) for name, width in self._widths.items()}}
        found = {name: (file.get_slice(name).get_shape(), file.get_slice(name)[:0].dtype) for name in wanted}
        rising = offsets.dtype == torch.int64 and ends[0] == 0 and all(start < stop for start, stop in pairs)
        if not rising or found != wanted or (keys.dtype, keys.shape) != (torch.uint8, (len(pairs), _KEY_BYTES)):
            raise ValueError
        return dict(zip((key.tobytes() for key in keys.numpy()), pairs, strict=True))

    def _open(self, shard: str) -> Any:
        return safe_open(self.directory / shard, framework="pt")

    def _damaged(self, shard: str) -> Pard2Error:
        return Pard2Error(f"features.cache {self.directory}: {shard} is missing or damaged; delete it, and what it held is generated again")


def writing_states(directory: Path) -> contextlib.AbstractContextManager[None]:
    """As `writing`, in words that name the way out."""
    way_out = "; what it holds is whole: make room and run the same command again, or set features.on_generate=delete"
    return writing(directory, way_out, "features.cache ")


def beside_path(directory: Path, name: str) -> Path:
    """Where a file is written before it takes its name; says which process writes it."""
    return directory / f".{name}.{socket.gethostname()}.{os.getpid()}"


def remove_leftovers(directory: Path) -> None:
    """Delete what processes of this machine that are no more were writing when they were killed."""
    for path in directory.glob(f".*.{socket.gethostname()}.*"):
        if not _alive(path.suffix.removeprefix(".")):
            path.unlink(missing_ok=True)


def _alive(process: str) -> bool:
    try:
        with contextlib.suppress(PermissionError):  # somebody else's
            os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    return True
