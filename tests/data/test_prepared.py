"""Prepared data: what comes back is what went in, whole, for the same tokenizer and template alone."""

import json

import pytest
from safetensors.numpy import load_file

from chat_tokenizer import CHATML, byte_tokenizer
from pard2.data import prepared
from pard2.data.examples import load_examples
from pard2.data.prepared import Preparation, is_prepared, load_prepared, save_prepared
from pard2.data.sources import open_source
from pard2.errors import Pard2Error

TOKENIZER = byte_tokenizer(CHATML)
EOS = frozenset({TOKENIZER.eos_token_id})


def record(name, answer="yes"):
    return {"id": name, "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(record(f"r{n}", "é" * (n + 1))) + "\n" for n in range(9)))
    return str(path)


@pytest.fixture
def directory(tmp_path, source):
    return prepare(tmp_path / "made", source)


def prepare(directory, source, max_length=1000, on_long="raise", tokenizer=TOKENIZER, eos=EOS):
    examples = load_examples([source], tokenizer, eos, max_length, on_long)
    save_prepared(directory, examples, [open_source(source)], tokenizer, eos, Preparation("some/target", max_length, on_long))
    return directory


def load(directory, max_length=1000, tokenizer=TOKENIZER, eos=EOS):
    return load_prepared(directory, tokenizer, eos, max_length)


@pytest.mark.parametrize("shard_tokens", [1, 100, 2**20])
def test_what_comes_back_is_what_went_in(tmp_path, source, monkeypatch, shard_tokens):
    """However it is spread over files; an example longer than a shard has one of its own."""
    monkeypatch.setattr(prepared, "_SHARD_TOKENS", shard_tokens)
    directory = prepare(tmp_path / "made", source)
    assert list(load(directory)) == list(load_examples([source], TOKENIZER, EOS, 1000))
    files = [load_file(file) for file in directory.glob("*.safetensors")]
    assert all(file["offsets"][0] == 0 and file["offsets"][-1] == len(file["tokens"]) for file in files)  # each can be read alone
    shards = len(files)
    assert shards == 9 if shard_tokens == 1 else 1 < shards < 9 if shard_tokens == 100 else shards == 1


def test_a_run_takes_it_among_files_and_knows_what_was_left_out(tmp_path, source):
    directory = prepare(tmp_path / "made", source, max_length=30, on_long="cut")
    examples = load_examples([source, str(directory)], TOKENIZER, EOS, 1000)
    direct = load_examples([source], TOKENIZER, EOS, 30, "cut")
    assert [e.token_ids.tolist() for e in examples[9:]] == [e.token_ids.tolist() for e in direct]
    assert examples.ids[9] == f"r0@{directory}" and 0 < examples.cut == direct.cut < 9


def test_the_manifest_says_what_made_it(directory, source):
    manifest = json.loads((directory / "manifest.json").read_text())
    examples = load(directory)
    assert manifest["counts"] == {
        "rows": 9,
        "examples": 9,
        "tokens": len(examples.tokens),
        "predicted_tokens": int(examples.predicted.sum()),
        "longest": max(examples.lengths),
        "skipped": 0,
        "cut": 0,
    }
    assert (manifest["format"], manifest["format_version"], manifest["target"]) == ("pard2-tokens", 1, "some/target")
    assert (manifest["max_length"], manifest["on_long"], manifest["eos_token_ids"]) == (1000, "raise", sorted(EOS))
    (described,) = manifest["sources"]
    assert described["name"] == source and described["rows"] == 9 and described["bytes"] > 0 and len(described["sha256"]) == 64
    assert set(manifest["versions"]) == {"pard2", "transformers", "tokenizers"} and len(manifest["template_hash"]) == 64


def test_another_tokenizer_template_or_end_is_refused(directory):
    """Its ids would mean other words, and the draft would learn them without complaint."""
    other = byte_tokenizer(CHATML)
    other.add_tokens(["word"])
    for options, what in (
        ({"tokenizer": other}, "tokenizer"),
        ({"tokenizer": byte_tokenizer(CHATML + " ")}, "chat template"),
        ({"eos": frozenset({1})}, "end-of-turn token"),
    ):
        with pytest.raises(Pard2Error, match=f"made was prepared for 'some/target', whose {what} is not the target's"):
            load(directory, **options)


def test_sources_of_two_tokenizers_are_refused(tmp_path, directory, source):
    other = byte_tokenizer(CHATML)
    other.add_tokens(["word"])
    second = prepare(tmp_path / "second", source, tokenizer=other)
    with pytest.raises(Pard2Error, match="second was prepared for 'some/target', whose tokenizer is not the target's"):
        load_examples([str(directory), str(second)], TOKENIZER, EOS, 1000)


def test_longer_examples_than_the_run_allows_are_refused(directory):
    longest = int(max(load(directory).lengths))
    assert len(load(directory, max_length=longest)) == 9
    with pytest.raises(Pard2Error, match=f"up to {longest} tokens, more than data.max_length={longest - 1}"):
        load(directory, max_length=longest - 1)


def test_only_what_prepare_wrote_is_taken_for_prepared(tmp_path, directory):
    assert is_prepared(directory)
    (tmp_path / "other").mkdir()
    assert not is_prepared(tmp_path / "other") and not is_prepared(tmp_path / "none")
    for content in ("[]", "{}", "not JSON", '{"format": "other"}'):
        (tmp_path / "other" / "manifest.json").write_text(content)
        assert not is_prepared(tmp_path / "other")


@pytest.mark.parametrize("damage", ["shard", "no shard", "ids", "counts", "manifest"])
def test_damage_is_one_line(directory, damage):
    shard, manifest = directory / "tokens-00000.safetensors", directory / "manifest.json"
    if damage == "shard":
        shard.write_bytes(shard.read_bytes()[:-5])
    elif damage == "no shard":
        shard.unlink()
    elif damage == "ids":
        (directory / "ids.json").write_text('["r0"]')
    elif damage == "counts":
        manifest.write_text(manifest.read_text().replace('"examples": 9', '"examples": 8'))
    else:
        manifest.write_text('{"format": "pard2-tokens", "format_version": 1}')
    with pytest.raises(Pard2Error, match="made is incomplete or damaged; make it again"):
        load(directory)


def test_another_version_says_so(directory):
    manifest = directory / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(Pard2Error, match="written by another version of pard2"):
        load(directory)


def test_a_failure_in_the_middle_leaves_what_was_there(directory, source, monkeypatch):
    before = {file.name: file.read_bytes() for file in directory.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepared, "save_file", full)
    with pytest.raises(Pard2Error, match="No space left on device"):
        prepare(directory, source, max_length=999)
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before
    assert sorted(path.name for path in directory.parent.iterdir()) == ["f.jsonl", "made"]
