"""Hidden states for training: online, and from a cache that must never give one conversation's to another."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from chat_tokenizer import VOCABULARY, byte_tokenizer
from pard2.data import state_cache
from pard2.data.corpus import Example, Examples, ExamplesBuilder
from pard2.data.features import DocumentStates, _batches, online_states
from pard2.data.state_cache import StateCache, cache_bytes
from pard2.errors import Pard2Error
from pard2.models.target import Target
from tiny import random_prompts, tiny_model, tiny_target

LAYERS = (-1, 1, -2)


def new_target(**shape) -> Target:
    return tiny_target(**({"layers": 3} | shape))


def new_examples(count: int = 12, seed: int = 0) -> Examples:
    builder = ExamplesBuilder()
    for number, tokens in enumerate(random_prompts(40, 30, seed)[:count]):
        builder.add(Example.of(f"r{number}", tokens, [True] * len(tokens)), "")
    return builder.build()


def fill(directory: Path, target: Target, examples: Examples, layers: tuple[int, ...] = LAYERS) -> None:
    with StateCache.open(directory, target, layers) as cache:
        cache.complete(examples, cache.read(examples))


def assert_equal(some: list[DocumentStates | None], others: list[DocumentStates | None]) -> None:
    for one, other in zip(some, others, strict=True):
        assert one is not None and other is not None
        assert one.features.dtype == other.features.dtype and one.last_state.dtype == other.last_state.dtype
        assert one.features.equal(other.features) and one.last_state.equal(other.last_state)


def alone(target: Target, examples: Examples, layers: tuple[int, ...] = LAYERS) -> list[DocumentStates]:
    return [online_states(target, [example], layers)[0] for example in examples]


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(Pard2Error) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few conversations each."""
    monkeypatch.setattr(state_cache, "_SHARD_BYTES", 10_000)


@pytest.fixture
def filled(tmp_path: Path, small_shards: None) -> Path:
    fill(tmp_path / "cache", new_target(), new_examples())
    assert len(shards(tmp_path / "cache")) > 2
    return tmp_path / "cache"


def shards(directory: Path) -> list[Path]:
    return sorted(directory.glob("states-*.safetensors"))


# --- online ---------------------------------------------------------------------------------------


def test_states_are_those_of_transformers():
    target, examples = new_target(), new_examples()
    for example, states in zip(examples, online_states(target, examples, LAYERS), strict=True):
        hidden = target.model(torch.tensor([example.token_ids.tolist()]), output_hidden_states=True).hidden_states
        expected = torch.cat([hidden[layer][0] for layer in LAYERS], dim=-1)
        torch.testing.assert_close(states.features, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(states.last_state, hidden[-1][0], rtol=1e-4, atol=1e-4)


def test_a_long_document_does_not_pad_all_the_short_ones():
    """Padded to the longest, many short documents and a long one would cost many times their tokens."""
    lengths = [3000, *[30] * 36, 2900, 1, 500]
    batches = list(_batches(lengths))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded <= 1.25 * sum(lengths) and len(batches) == 4


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [LAYERS, (1, -2), (2, -1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_read_is_what_the_target_said_bit_for_bit(layers, dtype, tmp_path):
    """Without -1 among the layers the last state is stored apart; with it, it is a part of the feature."""
    target = Target(tiny_model(layers=3).to(dtype))
    examples = new_examples(5)
    fill(tmp_path, target, examples, layers)
    (shard,) = shards(tmp_path)
    assert ("last_state" in load_file(shard)) == (-1 not in layers)
    assert_equal(StateCache.open(tmp_path, target, layers).read(examples), alone(target, examples, layers))


def test_records_are_found_by_what_they_say(filled):
    """Paired by order or id, a shuffled or renamed data set would be trained with other texts' states."""
    target, examples = new_target(), new_examples()
    shuffled = [Example(f"other{i}", examples[i].token_ids, examples[i].predicted) for i in (7, 0, 11, 3)]
    assert_equal(StateCache.open(filled, target, LAYERS).read(shuffled), alone(target, shuffled))


def test_states_do_not_depend_on_the_batch_they_were_made_in(tmp_path):
    """Else a run that was killed and one that was not would read different ones."""
    target, examples = new_target(), new_examples()
    fill(tmp_path / "one", target, examples)
    with StateCache.open(tmp_path / "other", target, LAYERS) as cache:
        for start in (8, 4, 0):
            part = examples[start : start + 4]
            cache.complete(part, [None] * 4)
    assert_equal(*(StateCache.open(tmp_path / name, target, LAYERS).read(examples) for name in ("one", "other")))


def test_equal_conversations_are_stored_once(tmp_path):
    target, examples = new_target(), new_examples(3)
    twice = [examples[0], examples[1], Example("again", examples[0].token_ids, examples[0].predicted)]
    with StateCache.open(tmp_path, target, LAYERS) as cache:
        assert_equal(cache.complete(twice, [None] * 3), alone(target, twice))
    (shard,) = shards(tmp_path)
    assert len(load_file(shard)["keys"]) == 2


def test_the_size_is_known_before(filled):
    target, examples = new_target(), new_examples()
    stored = sum(tensor.nbytes for shard in shards(filled) for tensor in load_file(shard).values())
    computed = cache_bytes(examples.lengths, target, LAYERS, torch.float32)
    assert stored == computed + 8 * len(shards(filled))  # one offset more than records in each
    # METHOD: an 8B target of width 4096 with four layers takes 32 KiB a token in bfloat16.
    with torch.device("meta"):
        wide = Target(tiny_model(hidden=4096, layers=1))
    assert cache_bytes([1000], wide, (-1, -2, 0, 1), torch.bfloat16) == 1000 * (32 * 1024 + 4) + 24


# --- the classic silent bug -----------------------------------------------------------------------


def test_other_tokens_under_a_key_are_an_error_that_names_the_record(filled):
    """What a bug in pairing would look like on disk: states that belong to another text."""
    target, examples = new_target(), new_examples()
    for shard in shards(filled):
        with_metadata = {"format": "pt", "made_by": made_by(shard)}
        tensors = load_file(shard)
        tensors["tokens"][tensors["offsets"][0]] += 1  # the first record's first token
        save_file(tensors, shard, with_metadata)
    cache = StateCache.open(filled, target, LAYERS)
    wrong = [example.id for example in examples if fails(lambda e=example: cache.read([e]))]
    assert len(wrong) == len(shards(filled))
    said = refused(lambda: cache.read([examples[int(wrong[0][1:])]]))
    assert f"holds other tokens than record {wrong[0]} has under its key; delete that file" in said


def made_by(shard: Path) -> str:
    header = shard.read_bytes()
    return json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]["made_by"]


def fails(act: Callable[[], object]) -> bool:
    try:
        act()
    except Pard2Error:
        return True
    return False


# --- policies -------------------------------------------------------------------------------------


def some_and_more() -> tuple[Examples, Examples]:
    """Those of `filled`, and four more that it lacks."""
    return new_examples(), new_examples(16)


def test_generate_and_keep_writes_what_was_missing(filled):
    target, (_, more) = new_target(), some_and_more()
    with StateCache.open(filled, target, LAYERS, "generate", "keep") as cache:
        assert cache.admit(more) is more and cache.missing(more) == [12, 13, 14, 15]
        found = cache.read(more)
        assert [one is None for one in found] == [False] * 12 + [True] * 4
        assert_equal(cache.complete(more, found), alone(target, more))
    assert_equal(StateCache.open(filled, target, LAYERS, "raise").read(more), alone(target, more))


def test_what_is_not_written_yet_is_read_all_the_same(tmp_path):
    """A conversation comes again before its shard is full: it is not computed again."""
    target, examples = new_target(), new_examples()
    cache = StateCache.open(tmp_path, target, LAYERS)
    generated = cache.complete(examples, cache.read(examples))
    assert not shards(tmp_path) and cache.missing(examples) == []
    assert_equal(cache.read(examples), generated)


def test_generate_and_delete_leaves_nothing(filled, tmp_path):
    target, (some, more) = new_target(), some_and_more()
    before = sorted(filled.iterdir())
    with StateCache.open(filled, target, LAYERS, "generate", "delete") as cache:
        assert_equal(cache.complete(more, cache.read(more)), alone(target, more))
        assert len(cache.missing(more)) == 4
    assert sorted(filled.iterdir()) == before
    with StateCache.open(tmp_path / "new", target, LAYERS, "generate", "delete") as cache:
        cache.complete(some, cache.read(some))
    assert not (tmp_path / "new").exists()


def test_skip_trains_with_what_is_there(filled):
    target, (some, more) = new_target(), some_and_more()
    cache = StateCache.open(filled, target, LAYERS, "skip")
    admitted = cache.admit(more)
    assert list(admitted) == list(some) and admitted.ids == some.ids
    assert_equal(cache.complete(admitted, cache.read(admitted)), alone(target, admitted))
    said = refused(lambda: cache.admit(new_examples(5, seed=9)))
    assert "holds none of the 5 conversations; fill it with `pard2 data cache`" in said


def test_raise_names_the_record_and_the_command(filled):
    target, (some, more) = new_target(), some_and_more()
    cache = StateCache.open(filled, target, LAYERS, "raise")
    assert cache.admit(some) is some
    said = f"features.cache {filled} lacks record r12 (and 3 more); fill it with `pard2 data cache`, or set features.on_missing=generate"
    assert refused(lambda: cache.admit(more)) == said
    assert "lacks record r0" in refused(lambda: StateCache.open(filled.parent / "none", target, LAYERS, "raise").admit(some))


def test_a_shard_that_goes_away_during_a_run(filled):
    target, examples = new_target(), new_examples()
    for policy in ("raise", "skip"):
        cache = StateCache.open(filled, target, LAYERS, policy)
        said = refused(lambda cache=cache: cache.complete(examples[:1], [None]) and cache.complete(new_examples(1, seed=9), [None]))
        assert "no longer holds record r0" in said
    shards(filled)[0].unlink()
    cache = StateCache.open(filled, target, LAYERS, "generate")
    assert 0 < len(cache.missing(examples)) < 12
    assert_equal(cache.complete(examples, cache.read(examples)), alone(target, examples))


# --- caches of something else ---------------------------------------------------------------------


def test_a_cache_of_another_target_is_refused(filled):
    """Same names, same shapes, other weights: a fine-tune of the target."""
    other = new_target(seed=1)
    assert "was made by another target (tiny-llama, whose weights are not those of tiny-llama)" in refused(
        lambda: StateCache.open(filled, other, LAYERS)
    )
    tuned = new_target()
    with torch.no_grad():
        tuned.model.model.layers[1].mlp.up_proj.weight.mul_(1.001)
    assert "was made by another target" in refused(lambda: StateCache.open(filled, tuned, LAYERS))
    scaled = new_target(rope_parameters={"rope_theta": 5000.0, "rope_type": "default"})  # same weights, other positions
    assert "was made by another target" in refused(lambda: StateCache.open(filled, scaled, LAYERS))


def test_the_same_target_elsewhere_is_the_same(filled, tmp_path):
    """A model that was moved or downloaded again keeps its cache."""
    new_target().model.save_pretrained(tmp_path / "moved")
    moved = Target(AutoModelForCausalLM.from_pretrained(tmp_path / "moved", dtype=torch.float32), name="moved")
    assert StateCache.open(filled, moved, LAYERS).missing(new_examples()) == []


def test_layers_that_are_not_there_are_refused(filled):
    assert "was made by hidden states [-1, -3, -2], and the draft wants [-1, -4] (draft.target_layers)" in refused(
        lambda: StateCache.open(filled, new_target(), (-1, 0))
    )


@pytest.mark.parametrize("layers", [(3, 1, 2), (-1, -2), (2,), (1, -1, 1)])
def test_any_of_its_layers_are_read_in_the_order_wanted(filled, layers):
    examples, target = new_examples(), new_target()
    cache = StateCache.open(filled, target, layers, on_missing="raise")
    assert cache.missing(examples) == []
    for found, made in zip(cache.read(examples), (online_states(target, [example], layers)[0] for example in examples), strict=True):
        assert found.features.equal(made.features) and found.last_state.equal(made.last_state)


def test_another_precision_is_refused(filled):
    half = new_target()
    half.model.bfloat16()
    said = "was made by a target in float32, and this one is in bfloat16 (target.dtype); name another directory"
    assert said in refused(lambda: StateCache.open(filled, half, LAYERS))


def test_another_template_or_tokenizer_is_refused(tmp_path):
    def chat_target() -> Target:
        return Target(tiny_model(vocab=VOCABULARY), byte_tokenizer(), name="chat")

    fill(tmp_path, chat_target(), new_examples(2))
    assert StateCache.open(tmp_path, chat_target(), LAYERS).missing(new_examples(2)) == []
    other = chat_target()
    other.tokenizer.chat_template += " "
    said = f"features.cache {tmp_path} was made by another chat template than that of chat; name another directory"
    assert refused(lambda: StateCache.open(tmp_path, other, LAYERS)) == said
    other = chat_target()
    other.tokenizer.add_tokens(["<|new|>"])
    assert "another tokenizer than that of chat" in refused(lambda: StateCache.open(tmp_path, other, LAYERS))


def test_a_shard_from_elsewhere_is_refused(filled, tmp_path):
    """Copied by hand, or written by two runs that began at once: the manifest is of one of them only."""
    fill(tmp_path / "other", new_target(seed=1), new_examples(2))
    shutil.copy(shards(tmp_path / "other")[0], filled)
    assert "was made by another target than the rest" in refused(lambda: StateCache.open(filled, new_target(), LAYERS))


@pytest.mark.parametrize("content", [None, "garbage", "{}", '{"format": "pard2-states", "format_version": 99}', "[]"])
def test_a_directory_of_something_else_is_left_alone(tmp_path, content):
    (tmp_path / "thesis.txt").write_text("years of work")
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    before = sorted(tmp_path.iterdir())
    said = f"features.cache {tmp_path} is no cache of this version of pard2; name an empty directory"
    assert refused(lambda: StateCache.open(tmp_path, new_target(), LAYERS)) == said
    (tmp_path / "file").write_text("")
    assert "is no cache" in refused(lambda: StateCache.open(tmp_path / "file", new_target(), LAYERS))
    assert sorted(p for p in tmp_path.iterdir() if p.name != "file") == before


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_shard_is_named(filled, damage):
    shard = shards(filled)[1]
    shard.write_bytes(shard.read_bytes()[:-7] if damage is None else damage)
    said = f"features.cache {filled}: {shard.name} is missing or damaged; delete it, and what it held is generated again"
    assert refused(lambda: StateCache.open(filled, new_target(), LAYERS)) == said


# --- kills, full disks, company -------------------------------------------------------------------


def fill_apart(directory: Path, count: int, seconds: float) -> int:
    """Another process that fills the cache, with a pause before each conversation; returns its id."""
    process = os.fork()
    if process:
        return process
    torch.set_num_threads(1)  # the parent's threads are not here
    generate = StateCache.generate

    def slowly(self: StateCache, example: Example) -> DocumentStates:
        time.sleep(seconds)
        return generate(self, example)

    try:
        StateCache.generate = slowly
        fill(directory, new_target(), new_examples(count))
        os._exit(0)
    finally:
        os._exit(1)


def test_a_kill_loses_the_shard_that_was_being_gathered_and_no_more(tmp_path, small_shards):
    target, examples = new_target(), new_examples(40)
    filler = fill_apart(tmp_path, 40, 0.05)
    deadline = time.monotonic() + 60
    while len(shards(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(filler, signal.SIGKILL)
    os.waitpid(filler, 0)
    kept = shards(tmp_path)
    cache = StateCache.open(tmp_path, target, LAYERS)
    lacking = cache.missing(examples)
    assert len(kept) >= 3 and 0 < len(lacking) < 40
    with cache:
        assert_equal(cache.complete(examples, cache.read(examples)), alone(target, examples))
    assert set(kept) < set(shards(tmp_path))
    again = StateCache.open(tmp_path, target, LAYERS, "raise")
    assert_equal(again.read(again.admit(examples)), alone(target, examples))
    assert sum(len(load_file(shard)["keys"]) for shard in shards(tmp_path)) == 40  # nothing was computed twice


def test_what_a_killed_process_was_writing_is_removed_and_what_a_live_one_writes_is_not(filled):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = os.uname().nodename
    leftover, living = filled / f".states-0.safetensors.{host}.{dead.pid}", filled / f".states-1.safetensors.{host}.{os.getpid()}"
    for path in (leftover, living):
        path.write_bytes(b"half")
    StateCache.open(filled, new_target(), LAYERS)
    assert not leftover.exists() and living.exists()


def test_a_failure_between_records_keeps_what_was_generated(tmp_path):
    target, examples = new_target(), new_examples()

    def interrupted() -> None:
        with StateCache.open(tmp_path, target, LAYERS) as cache:
            for example in examples[:5]:
                cache.generate(example)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert StateCache.open(tmp_path, target, LAYERS).missing(examples) == list(range(5, 12))


def test_a_full_disk_is_one_line_and_what_was_complete_stays(filled):
    target, (some, more) = new_target(), some_and_more()
    before = sorted(filled.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))  # the nearest to a full disk that needs no disk

        def act() -> None:
            with StateCache.open(filled, target, LAYERS) as cache:
                cache.complete(more, cache.read(more))

        said = refused(act)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert said.startswith(f"cannot write features.cache {filled}: ") and "make room and run the same command again" in said
    assert sorted(filled.iterdir()) == before
    assert_equal(StateCache.open(filled, target, LAYERS, "raise").read(some), alone(target, some))


def test_what_will_not_fit_is_known_before_the_first_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**10, 10**10 - 10_000, 10_000))
    target, examples = new_target(), new_examples()
    said = refused(lambda: StateCache.open(tmp_path / "a" / "b", target, LAYERS).admit(examples))
    assert said.startswith(f"features.cache {tmp_path / 'a' / 'b'} needs 0 MB more and its disk has 0 MB free; name a directory on another disk")
    assert StateCache.open(tmp_path / "a", target, LAYERS, "generate", "delete").admit(examples) is examples


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("precious")
    assert "cannot write features.cache" in refused(lambda: fill(tmp_path / "file" / "cache", new_target(), new_examples(2)))
    assert (tmp_path / "file").read_text() == "precious"


def test_two_processes_fill_one_directory(tmp_path, small_shards):
    """Two ranks with rows in common."""
    target = new_target()
    fillers = [fill_apart(tmp_path, 12, 0.01), fill_apart(tmp_path, 16, 0.01)]
    assert [os.waitpid(filler, 0)[1] for filler in fillers] == [0, 0]
    cache = StateCache.open(tmp_path, target, LAYERS, "raise")
    examples = cache.admit(new_examples(16))
    assert_equal(cache.read(examples), alone(target, examples))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_one_process_reads_what_another_wrote_meanwhile(tmp_path, monkeypatch):
    """In the second epoch a rank meets rows that another one had in the first."""
    target, examples = new_target(), new_examples()
    mine = StateCache.open(tmp_path, target, LAYERS)
    found = mine.read(examples)
    fill(tmp_path, target, examples)
    monkeypatch.setattr(mine, "generate", lambda example: pytest.fail("it is there"))
    assert_equal(mine.complete(examples, found), alone(target, examples))


def test_slow_targets_lose_a_minute_and_not_an_hour(tmp_path, monkeypatch):
    """A shard is written when it is full or has been gathered for long."""
    monkeypatch.setattr(state_cache, "_SHARD_SECONDS", 0.0)
    cache = StateCache.open(tmp_path, new_target(), LAYERS)
    cache.generate(new_examples()[0])
    assert len(shards(tmp_path)) == 1
