"""Tokenised examples on disk: sharded safetensors, and a manifest of what made them.

The manifest is there so that they are never used for another model.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import file_digest
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import NonNegativeInt, TypeAdapter
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pard2.data.corpus import Examples, joined_arrays, offsets_of
from pard2.data.fingerprint import template_hash, tokenizer_hash
from pard2.data.sources import Source
from pard2.errors import Pard2Error
from pard2.files import recover, whole_directory
from pard2.hf import Tokenizer
from pard2.reading import read_json

FORMAT, FORMAT_VERSION = "pard2-tokens", 1
MANIFEST = "manifest.json"
BYTES_PER_TOKEN = 5  # an int32 and a bool
_SHARD_TOKENS = 2**26
_ID_FILE = "ids.json"


@dataclass(frozen=True)
class Preparation:
    """How examples were made, for the manifest.

    target: its name.
    max_length: tokens of the longest example that was allowed.
    on_long: what became of a longer one, as for `load_examples`.
    arguments: what the chat template got; None for nothing.
    """

    target: str
    max_length: int
    on_long: str
    arguments: dict[str, Any] | None = None


def is_prepared(name: str | Path) -> bool:
    """Whether this is a directory that `save_prepared` wrote."""
    recover(Path(name))
    try:
        return read_json(Path(name) / MANIFEST).get("format") == FORMAT
    except (Pard2Error, AttributeError):
        return False


def save_prepared(
    directory: str | Path,
    examples: Examples,
    sources: list[Source],
    tokenizer: Tokenizer,
    eos_token_ids: frozenset[int],
    preparation: Preparation,
) -> None:
    """Write the examples of `sources`; the directory appears whole, replacing an older one.

    Raises `Pard2Error` if it cannot be written.
    """
    with whole_directory(directory) as beside:
        shards: list[str] = []
        for first, last in _shards(examples.offsets):
            start, stop = examples.offsets[first], examples.offsets[last]
            tensors = {
                "tokens": examples.tokens[start:stop],
                "predicted": examples.predicted[start:stop],
                "offsets": examples.offsets[first : last + 1] - start,
            }
            shards.append(f"tokens-{len(shards):05d}.safetensors")
            save_file(tensors, beside / shards[-1])
            (beside / shards[-1]).chmod(0o644)  # safetensors makes it the owner's alone
        (beside / _ID_FILE).write_text(json.dumps(examples.ids))
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "target": preparation.target,
            **_fingerprint(tokenizer, eos_token_ids),
            "max_length": preparation.max_length,
            "on_long": preparation.on_long,
            "chat_template_kwargs": preparation.arguments or {},
            "arguments": examples.arguments,
            "notes": examples.notes,
            "counts": {"rows": sum(source.count for source in sources), **_counts(examples)},
            "shards": shards,
            "sources": [_described(one) for source in sources for one in (source.parts or [source])],
            "versions": {package: version(package) for package in ("pard2", "transformers", "tokenizers")},
        }
        (beside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def load_prepared(
    directory: str | Path, tokenizer: Tokenizer, eos_token_ids: frozenset[int], max_length: int, arguments: dict[str, Any] | None = None
) -> Examples:
    """What `save_prepared` wrote.

    max_length: tokens of the longest example that is allowed.
    arguments: what the chat template must have got; None for any.

    Raises `Pard2Error` if it was made for another tokenizer or template, or with other arguments of the
    template, if it holds longer examples, or if it is damaged.
    """
    directory = Path(directory)
    damaged = Pard2Error(f"{directory} is incomplete or damaged; make it again with `pard2 data prepare`")
    try:
        manifest = read_json(directory / MANIFEST)
        if manifest["format_version"] != FORMAT_VERSION:
            raise Pard2Error(f"{directory} was written by another version of pard2; make it again with `pard2 data prepare`")
        for key, value in _fingerprint(tokenizer, eos_token_ids).items():
            if manifest[key] != value:
                what = {"tokenizer_hash": "tokenizer", "template_hash": "chat template", "eos_token_ids": "end-of-turn token"}[key]
                raise Pard2Error(
                    f"{directory} was prepared for {manifest['target']!r}, whose {what} is not the target's; make it again with `pard2 data prepare`"
                )
        held = manifest.get("chat_template_kwargs", {})
        if arguments is not None and held != arguments:
            raise Pard2Error(
                f"{directory} was prepared with --template-arg {json.dumps(held)}, and data.chat_template_kwargs is {json.dumps(arguments)}; "
                "give the same, or prepare it again"
            )
        counts = TypeAdapter(dict[str, NonNegativeInt]).validate_python(manifest["counts"], strict=True)
        if counts["longest"] > max_length:
            raise Pard2Error(
                f"{directory} holds examples of up to {counts['longest']} tokens, more than data.max_length={max_length}; "
                "raise that, or prepare it again with this --max-length"
            )
        ids = TypeAdapter(list[str]).validate_python(read_json(directory / _ID_FILE), strict=True)
        shards = [load_file(directory / Path(name).name) for name in manifest["shards"]]
        notes = TypeAdapter(dict[str, NonNegativeInt]).validate_python(manifest.get("notes", {}), strict=True)
        given = TypeAdapter(list[dict[str, Any]] | None).validate_python(manifest.get("arguments"), strict=True)
        examples = Examples(
            tokens=joined_arrays([shard["tokens"] for shard in shards]),
            predicted=joined_arrays([shard["predicted"] for shard in shards]),
            offsets=offsets_of(joined_arrays([np.diff(shard["offsets"]) for shard in shards])),
            ids=ids,
            skipped=counts["skipped"],
            cut=counts["cut"],
            notes=notes,
            arguments=given,
        )
        if not _is_whole(examples, max(tokenizer.get_vocab().values())) or any(counts[name] != count for name, count in _counts(examples).items()):
            raise damaged
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        raise damaged from None
    return examples


def _counts(examples: Examples) -> dict[str, int]:
    return {
        "examples": len(examples),
        "tokens": len(examples.tokens),
        "predicted_tokens": int(examples.predicted.sum()),
        "longest": int(examples.lengths.max()),
        "skipped": examples.skipped,
        "cut": examples.cut,
    }


def _is_whole(examples: Examples, last_token: int) -> bool:
    """Whether the arrays are what they must be.

    That is token ids from 0 to `last_token`, ids of examples that all differ, and in each example something
    to predict.
    """
    tokens, predicted, offsets, ids = examples.tokens, examples.predicted, examples.offsets, examples.ids
    return bool(
        (tokens.dtype, predicted.dtype, offsets.dtype) == (np.int32, np.bool_, np.int64)
        and len(set(ids)) == len(ids) == len(offsets) - 1
        and tokens.shape == predicted.shape == (offsets[-1],)
        and examples.lengths.min() > 0
        and 0 <= tokens.min() <= tokens.max() <= last_token
        and np.logical_or.reduceat(predicted, offsets[:-1]).all()
    )


def _fingerprint(tokenizer: Tokenizer, eos_token_ids: frozenset[int]) -> dict[str, Any]:
    """What tokens and mask depend on beside the conversations."""
    return {
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "template_hash": template_hash(tokenizer),
        "eos_token_ids": sorted(eos_token_ids),
    }


def _shards(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and one past the last example of each shard, which holds whole examples only."""
    first = 0
    while first < len(offsets) - 1:
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _SHARD_TOKENS, side="right")) - 1)
        yield first, last
        first = last


def _described(source: Source) -> dict[str, Any]:
    if source.file is None:
        return {"name": source.name, "rows": source.count}
    with open(source.file, "rb") as file:
        return {"name": source.name, "rows": source.count, "bytes": source.file.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}
