"""Our own files, damaged or made up: one line, and never believed."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chat_tokenizer import END_ID, byte_tokenizer
from pard2.data.corpus import Example
from pard2.data.examples import load_examples
from pard2.data.prepared import Preparation, save_prepared
from pard2.data.sources import open_source
from pard2.data.state_cache import StateCache
from pard2.errors import Pard2Error
from pard2.models.target import Target
from tiny import tiny_model

TOKENIZER, EOS = byte_tokenizer(), frozenset({END_ID})
DEEP = "[" * 100_000


def edit_json(path: Path, change) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def edit_tensors(path: Path, change) -> None:
    raw = path.read_bytes()
    metadata = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]).get("__metadata__")
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)


def put(tensors, name, index, value):
    tensors[name][index] = value


def refused(act) -> str:
    with pytest.raises(Pard2Error) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- prepared data --------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path) -> Path:
    source = tmp_path / "f.jsonl"
    source.write_text("".join(json.dumps({"id": f"r{n}", "text": "once upon " + "a" * n}) + "\n" for n in range(4)))
    save_prepared(tmp_path / "made", load(source), [open_source(source)], TOKENIZER, EOS, Preparation("t", 100, "raise"))
    return tmp_path / "made"


def load(name):
    return load_examples([str(name)], TOKENIZER, EOS, 100)


MANIFEST = {
    "a count that is a text": lambda m: m["counts"].update(skipped="0"),
    "a count that is negative": lambda m: m["counts"].update(cut=-1),
    "a count that is no whole number": lambda m: m["counts"].update(cut=0.5),
    "a count that is true": lambda m: m["counts"].update(skipped=True),
    "another number of tokens to predict": lambda m: m["counts"].update(predicted_tokens=3),
    "a shorter longest example": lambda m: m["counts"].update(longest=2),
    "counts that are a list": lambda m: m.update(counts=[1]),
    "no counts": lambda m: m.__delitem__("counts"),
    "shards that are a number": lambda m: m.update(shards=5),
    "shards that are numbers": lambda m: m.update(shards=[5]),
    "no shards": lambda m: m.update(shards=[]),
    "a shard twice": lambda m: m.update(shards=m["shards"] * 2),
}
IDS = {
    "ids that are an object": lambda ids: dict.fromkeys(ids),
    "ids that are numbers": lambda ids: [1, 2, 3, 4],
    "ids that are lists": lambda ids: [[one] for one in ids],
    "an id twice": lambda ids: ["r0", "r0", "r2", "r3"],
    "ids too few": lambda ids: ids[:3],
}
TOKENS = {
    "a negative token": lambda t: put(t, "tokens", 0, -1),
    "a token beyond the vocabulary": lambda t: put(t, "tokens", 0, 258),
    "tokens that are floats": lambda t: t.update(tokens=t["tokens"].float()),
    "tokens of 64 bits": lambda t: t.update(tokens=t["tokens"].long()),
    "tokens in a square": lambda t: t.update(tokens=t["tokens"][None]),
    "nothing predicted": lambda t: put(t, "predicted", slice(None), False),
    "one example without a token to predict": lambda t: put(t, "predicted", slice(0, 10), False),
    "predicted as numbers": lambda t: t.update(predicted=t["predicted"].int()),
    "predicted too short": lambda t: t.update(predicted=t["predicted"][1:]),
    "offsets that do not rise": lambda t: put(t, "offsets", 1, int(t["offsets"][2])),
    "offsets that fall": lambda t: put(t, "offsets", 1, int(t["offsets"][2]) + 1),
    "offsets that are floats": lambda t: t.update(offsets=t["offsets"].double()),
    "offsets in a square": lambda t: t.update(offsets=t["offsets"][None]),
    "one offset": lambda t: t.update(offsets=t["offsets"][:1]),
    "no offsets": lambda t: t.__delitem__("offsets"),
}


@pytest.mark.parametrize("damage", [*MANIFEST, *IDS, *TOKENS])
def test_prepared_data(prepared, damage):
    assert len(load(prepared)) == 4
    if damage in MANIFEST:
        edit_json(prepared / "manifest.json", MANIFEST[damage])
    elif damage in IDS:
        edit_json(prepared / "ids.json", IDS[damage])
    else:
        shard = prepared / "tokens-00000.safetensors"
        edit_tensors(shard, TOKENS[damage])
        predicted = int(load_file(shard)["predicted"].sum())  # a count that is right, so that the arrays alone are wrong
        edit_json(prepared / "manifest.json", lambda m: m["counts"].update(predicted_tokens=predicted))
    assert refused(lambda: load(prepared)) == f"{prepared} is incomplete or damaged; make it again with `pard2 data prepare`"


def test_prepared_data_without_a_file(prepared):
    (prepared / "ids.json").write_text(DEEP)
    assert "ids.json is nested too deeply" in refused(lambda: load(prepared))
    (prepared / "ids.json").unlink()
    os.mkfifo(prepared / "ids.json")
    assert "ids.json: it is not a regular file" in refused(lambda: load(prepared))
    (prepared / "manifest.json").write_text(DEEP)
    refused(lambda: load(prepared))


# --- hidden states --------------------------------------------------------------------------------

EXAMPLES = [Example.of(f"e{n}", [1 + n, 2, 3, 4 + n][: 3 + n % 2], [True] * (3 + n % 2)) for n in range(4)]


def target() -> Target:
    return Target(tiny_model(), name="tiny")


@pytest.fixture
def cache(tmp_path) -> Path:
    with StateCache.open(tmp_path / "cache", target(), (1,)) as states:
        states.complete(EXAMPLES, [None] * len(EXAMPLES))
    return tmp_path / "cache"


def read(cache, *layers):
    return StateCache.open(cache, target(), layers or (1,)).read(EXAMPLES)


SHARD = {
    "offsets short": lambda t: t.update(offsets=t["offsets"][:-1]),
    "one offset": lambda t: t.update(offsets=t["offsets"][:1]),
    "no offset": lambda t: t.update(offsets=t["offsets"][:0]),
    "offsets that are one number": lambda t: t.update(offsets=t["offsets"][0]),
    "offsets that are floats": lambda t: t.update(offsets=t["offsets"].float()),
    "offsets in a square": lambda t: t.update(offsets=t["offsets"][None]),
    "offsets that fall": lambda t: put(t, "offsets", 1, 99),
    "offsets that do not begin at 0": lambda t: put(t, "offsets", 0, 1),
    "keys short": lambda t: t.update(keys=t["keys"][1:]),
    "keys of another size": lambda t: t.update(keys=t["keys"][:, 1:]),
    "keys that are floats": lambda t: t.update(keys=t["keys"].float()),
    "tokens of 64 bits": lambda t: t.update(tokens=t["tokens"].long()),
    "features of another width": lambda t: t.update(features=t["features"][:, 1:]),
    "features of another precision": lambda t: t.update(features=t["features"].half()),
    "features of fewer rows": lambda t: t.update(features=t["features"][1:]),
    "features in a row": lambda t: t.update(features=t["features"].flatten()),
    "no features": lambda t: t.__delitem__("features"),
    "last states of another width": lambda t: t.update(last_state=t["last_state"][:, 1:]),
    "no last states": lambda t: t.__delitem__("last_state"),
}


@pytest.mark.parametrize("damage", SHARD)
def test_a_shard_of_states(cache, damage):
    assert all(one is not None for one in read(cache))
    (shard,) = cache.glob("states-*")
    edit_tensors(shard, SHARD[damage])
    said = f"features.cache {cache}: {shard.name} is missing or damaged; delete it, and what it held is generated again"
    assert refused(lambda: read(cache)) == said


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["features", "last_state"])
def test_states_that_are_not_finite(cache, name, number):
    """Every loss would be NaN, for no reason that anybody could see."""
    (shard,) = cache.glob("states-*")
    edit_tensors(shard, lambda t: put(t, name, (3, 1), number))
    assert "holds numbers of record e1 that are not finite; delete that file" in refused(lambda: read(cache))


@pytest.mark.parametrize("content", [DEEP, "5", '{"format": "pard2-states", "format_version": 1, "identity": 5, "target": "t"}', "9" * 5000])
def test_a_manifest_of_states(cache, content):
    (cache / "manifest.json").write_text(content)
    assert refused(lambda: read(cache)) == f"features.cache {cache} is no cache of this version of pard2; name an empty directory"


def test_states_are_read_in_half_precision(tmp_path):
    """The check must not take one precision for another."""
    made = Target(tiny_model().to(torch.bfloat16), name="tiny")
    with StateCache.open(tmp_path, made, (1, -1)) as states:
        states.complete(EXAMPLES, [None] * len(EXAMPLES))
    assert all(one is not None for one in StateCache.open(tmp_path, made, (1, -1)).read(EXAMPLES))
