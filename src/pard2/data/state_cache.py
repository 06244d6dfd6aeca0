"""The target's hidden states on disk, so that several epochs, runs or processes compute them once.

A directory holds `manifest.json`, which says what made it, and `shards`. The states of a conversation are
computed from it alone: they do not depend on what it shared a batch with, and so not on when or by whom the
cache was filled.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pard2.data.corpus import Example, Examples, ExamplesBuilder
from pard2.data.features import DocumentStates, online_states
from pard2.data.fingerprint import template_hash, tokenizer_hash
from pard2.data.shards import Shards, StateRecord, beside_path, record_key, remove_leftovers, writing_states
from pard2.errors import Pard2Error
from pard2.models.identity import weights_hash
from pard2.models.target import Target
from pard2.reading import read_json
from pard2.units import size

FORMAT, FORMAT_VERSION = "pard2-states", 1
MANIFEST = "manifest.json"
_SHARD_BYTES = 2**28
_SHARD_SECONDS = 60.0  # of gathering, which a kill may cost; a small target takes long to fill a shard


class StateCache:
    """States by conversation. `read` may run in another thread than the rest."""

    @classmethod
    def open(
        cls,
        directory: str | Path,
        target: Target,
        layers: Sequence[int],
        on_missing: Literal["generate", "skip", "raise"] = "generate",
        on_generate: Literal["keep", "delete"] = "keep",
        more: Sequence[int] = (),
    ) -> "StateCache":
        """The cache in `directory`, which need not exist yet. One that holds more hidden states than are
        wanted serves.

        target: with plain weights.
        layers: the hidden states that make a feature.
        more: hidden states that a new cache shall hold as well.
        on_missing: what becomes of a conversation that the cache lacks.
        on_generate: `keep` writes what had to be generated; `delete` leaves nothing of it on disk, so that
            each use computes it anew.

        Raises `Pard2Error` for a directory of something else, a damaged shard, or states of another target,
        precision, layers, tokenizer or chat template.
        """
        target.check_layers([*layers, *more])
        asked = dict(zip(_numbers(target, [*more, *layers]), [*more, *layers], strict=True))
        held: Sequence[int] = stored_layers(directory) or [asked[number] for number in dict.fromkeys(_numbers(target, [*layers, *more]))]
        if not {*_numbers(target, layers)} <= {*_numbers(target, held)}:
            held = layers  # which the manifest contradicts
        cache = cls(Path(directory), target, tuple(layers), tuple(held), on_missing, on_generate == "keep")
        cache._check_manifest()
        cache._shards.find()
        return cache

    def __init__(self, directory: Path, target: Target, wanted: tuple[int, ...], layers: tuple[int, ...], on_missing: str, keep: bool) -> None:
        """Use `open`. layers: that it holds, `wanted` among them."""
        self.directory, self.target, self.layers = directory, target, layers
        self._on_missing, self._keep = on_missing, keep
        self._identity = _identity(target, layers)
        self._columns = _columns(target, wanted, layers)
        self._pending: dict[bytes, StateRecord] = {}  # generated, on the CPU, not yet written
        self._pending_bytes, self._began = 0, 0.0
        self._last_state_columns = _last_state_columns(target, layers)
        widths = {"features": len(layers) * target.hidden_size} | ({"last_state": target.hidden_size} if self._last_state_columns is None else {})
        self._shards = Shards(directory, hashlib.sha256(json.dumps(self._identity).encode()).hexdigest(), widths, target.model.dtype)

    def __enter__(self) -> "StateCache":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.flush()

    def missing(self, examples: Sequence[Example]) -> list[int]:
        """Numbers of the examples that it lacks."""
        keys = (record_key(examples[i].token_ids) for i in range(len(examples)))
        return [i for i, key in enumerate(keys) if key not in self._pending and key not in self._shards]

    def admit(self, examples: Examples) -> Examples:
        """The examples that a run can use: all, or with `skip` those that are here.

        Raises `Pard2Error` with `raise` for the first that is not here, with `skip` if none is, and if what
        will be kept does not fit on the disk.
        """
        lacking = self.missing(examples)
        if not lacking:
            return examples
        way_out = "fill it with `pard2 data cache`, or set features.on_missing=generate"
        if self._on_missing == "generate":
            if self._keep:
                self.check_room(self.bytes_of(examples.lengths[lacking]))
            return examples
        if self._on_missing == "raise":
            more = f" (and {len(lacking) - 1:,} more)" if len(lacking) > 1 else ""
            raise Pard2Error(f"features.cache {self.directory} lacks record {examples[lacking[0]].id}{more}; {way_out}")
        if len(lacking) == len(examples):
            raise Pard2Error(f"features.cache {self.directory} holds none of the {len(examples):,} conversations; {way_out}")
        builder = ExamplesBuilder()
        for index in sorted(set(range(len(examples))) - set(lacking)):
            builder.add(examples[index], source="")  # ids are different already
        builder.skipped, builder.cut = examples.skipped, examples.cut
        builder.tally.add(examples.notes, examples.arguments)
        return builder.build()

    def read(self, examples: Sequence[Example]) -> list[DocumentStates | None]:
        """What it holds of each, on the target's device.

        Raises `Pard2Error`, naming the record, where other tokens are stored under its key.
        """
        return [self._read(example) for example in examples]

    def complete(self, examples: Sequence[Example], found: Sequence[DocumentStates | None]) -> list[DocumentStates]:
        """`found`, as `read` gave it; what it lacks is generated, or read if it was written meanwhile."""
        states = [one for one in found if one is not None]
        if len(states) == len(examples):
            return states
        self._shards.find()
        states = []
        for example, one in zip(examples, found, strict=True):
            one = one or self._read(example)
            if one is None and self._on_missing != "generate":
                raise Pard2Error(f"features.cache {self.directory} no longer holds record {example.id}; was a file of it deleted?")
            states.append(one or self.generate(example))
        return states

    def generate(self, example: Example) -> DocumentStates:
        """Its states from the target; with `keep` they will be in the next shard.

        Raises `Pard2Error` if that cannot be written.
        """
        (states,) = online_states(self.target, [example], self.layers)
        if self._keep:
            if not self._pending:
                self._began = time.monotonic()
            record = StateRecord(example.token_ids, states.features.cpu(), states.last_state.cpu() if self._last_state_columns is None else None)
            self._pending[record.key] = record
            self._pending_bytes += self.bytes_of([len(record.tokens)])
            if self._pending_bytes >= _SHARD_BYTES or time.monotonic() - self._began >= _SHARD_SECONDS:
                self.flush()
        return self._chosen(states)

    def flush(self) -> None:
        """Write what was generated since the last shard as one.

        Raises `Pard2Error` if it cannot be written; what was there stays.
        """
        if not self._pending:
            return
        try:
            self._write_manifest()
            self._shards.write(list(self._pending.values()))
        finally:
            # Last, since another thread must find each record in one place or the other.
            self._pending, self._pending_bytes = {}, 0

    def bytes_of(self, lengths: Sequence[int] | np.ndarray) -> int:
        """Bytes on disk of conversations of so many tokens."""
        return cache_bytes(lengths, self.target, self.layers, self.target.model.dtype)

    def check_room(self, needed: int) -> None:
        """Raises `Pard2Error` if so many bytes do not fit on the cache's disk."""
        there = self.directory.absolute()
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free
        if needed > free:
            raise Pard2Error(
                f"features.cache {self.directory} needs {size(needed)} more and its disk has {size(free)} free; "
                "name a directory on another disk, or let each step compute the states: features.cache=null"
            )

    def _read(self, example: Example) -> DocumentStates | None:
        tokens, device = example.token_ids, self.target.device
        # In this order: a record goes from pending to a shard.
        record = self._pending.get(record_key(tokens)) or self._shards.read(tokens, example.id)
        if record is None:
            return None
        features = record.features.to(device)
        if self._last_state_columns is not None:
            return self._chosen(DocumentStates(features, features[:, self._last_state_columns]))
        assert record.last_state is not None
        return self._chosen(DocumentStates(features, record.last_state.to(device)))

    def _chosen(self, states: DocumentStates) -> DocumentStates:
        """With the wanted hidden states alone."""
        if self._columns is None:
            return states
        return DocumentStates(torch.cat([states.features[:, columns] for columns in self._columns], -1), states.last_state)

    def _check_manifest(self) -> None:
        try:
            if not self.directory.exists() or not any(path for path in self.directory.iterdir() if not path.name.startswith(".")):
                return
            manifest = read_json(self.directory / MANIFEST)
            if manifest["format"] != FORMAT or manifest["format_version"] != FORMAT_VERSION:
                raise ValueError
            made_by, name = manifest["identity"], manifest["target"]
            differing = [key for key, value in self._identity.items() if made_by[key] != value]
        except (OSError, Pard2Error, ValueError, KeyError, TypeError):
            raise Pard2Error(f"features.cache {self.directory} is no cache of this version of pard2; name an empty directory") from None
        if differing:
            what = {
                "weights": f"another target ({name}, whose weights are not those of {self.target.name})",
                "dtype": f"a target in {made_by['dtype']}, and this one is in {self._identity['dtype']} (target.dtype)",
                "layers": f"hidden states {made_by['layers']}, and the draft wants {self._identity['layers']} (draft.target_layers)",
                "tokenizer": f"another tokenizer than that of {self.target.name}",
                "template": f"another chat template than that of {self.target.name}",
            }[differing[0]]
            raise Pard2Error(f"features.cache {self.directory} was made by {what}; name another directory")
        remove_leftovers(self.directory)

    def _write_manifest(self) -> None:
        path = self.directory / MANIFEST
        if path.exists():
            return
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "target": self.target.name,
            "identity": self._identity,
            "versions": {package: version(package) for package in ("pard2", "torch", "transformers")},
        }
        beside = beside_path(self.directory, MANIFEST)
        with writing_states(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(manifest, indent=2) + "\n")
            beside.rename(path)


def stored_layers(directory: str | Path) -> tuple[int, ...] | None:
    """The hidden states that a cache holds, for a reader who needs the last one alone, which every cache has.

    None where there is no cache yet, or no readable one: `StateCache.open` tells.
    """
    try:
        return tuple(int(layer) for layer in read_json(Path(directory) / MANIFEST)["identity"]["layers"])
    except (OSError, Pard2Error, ValueError, KeyError, TypeError):
        return None


def cache_bytes(lengths: Sequence[int] | np.ndarray, target: Target, layers: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes on disk of conversations of so many tokens, all different, but for the shards' headers.

    target: may be on the `meta` device.
    """
    states = len(layers) + (_last_state_columns(target, layers) is None)
    each_token, each_record = states * target.hidden_size * dtype.itemsize + 4, 24
    return int(np.sum(lengths)) * each_token + len(lengths) * each_record


def _numbers(target: Target, layers: Iterable[int]) -> list[int]:
    """The layers counted from the first one."""
    return [layer % target.num_states for layer in layers]


def _columns(target: Target, wanted: Sequence[int], held: Sequence[int]) -> list[slice] | None:
    """Where in a feature of all hidden states held each wanted one stands; None where a feature is just
    those."""
    numbers = _numbers(target, held)
    if _numbers(target, wanted) == numbers:
        return None
    starts = [numbers.index(number) * target.hidden_size for number in _numbers(target, wanted)]
    return [slice(start, start + target.hidden_size) for start in starts]


def _last_state_columns(target: Target, layers: Sequence[int]) -> slice | None:
    """Columns of a feature that are the state after the final norm, which is then not stored twice."""
    numbers = _numbers(target, layers)
    if target.num_states - 1 not in numbers:
        return None
    first = numbers.index(target.num_states - 1) * target.hidden_size
    return slice(first, first + target.hidden_size)


def _identity(target: Target, layers: Sequence[int]) -> dict[str, Any]:
    """What the states depend on beside the tokens.

    The hashes of tokenizer and template are in it, too: with others, no conversation would be found.
    """
    tokenizer = target.tokenizer
    return {
        "dtype": str(target.model.dtype).removeprefix("torch."),  # before the weights, which it rounds
        "weights": weights_hash(target.model),
        "layers": [layer % target.num_states - target.num_states for layer in layers],
        "tokenizer": None if tokenizer is None else tokenizer_hash(tokenizer),
        "template": None if tokenizer is None else template_hash(tokenizer),
    }
