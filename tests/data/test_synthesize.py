"""Prompts out of nothing. A random model says no words, so what it says is put into its mouth."""

from collections.abc import Iterator

import pytest

from chat_tokenizer import VOCABULARY, byte_tokenizer
from pard2 import Completion, Stats
from pard2.data.chat import encode
from pard2.data.records import RecordWriter, read_records
from pard2.data.synthesize import MOST_BARREN, synthesize
from pard2.errors import Pard2Error
from pard2.models.target import Target
from tiny import tiny_target

Said = str | tuple[str, str]  # a text that ended by itself, or with another finish_reason


@pytest.fixture
def target() -> Target:
    target = tiny_target(vocab=VOCABULARY)
    target.tokenizer = byte_tokenizer()
    return target


def completion(said: Said) -> Completion:
    text, reason = (said, "stop") if isinstance(said, str) else said
    return Completion(
        token_ids=[1], text=text, finish_reason=reason, prompt_tokens=1, stats=Stats(), method="ar", error="NaN" if reason == "error" else None
    )


class Speaker:
    """Says these texts and then "no" for ever; remembers what it was asked, and how much of it was made."""

    def __init__(self, *texts: Said) -> None:
        self.left = list(texts)
        self.prompts: list[list[list[int]]] = []
        self.seeds: list[list[int]] = []
        self.made = 0

    def __call__(self, prompts: list[list[int]], seeds: list[int]) -> Iterator[Completion]:
        self.prompts.append(prompts)
        self.seeds.append(seeds)
        for _ in prompts:
            self.made += 1
            yield completion(self.left.pop(0) if self.left else "no")


def texts(path):
    return [r["messages"][0]["content"] for r in read_records(path)]


def test_only_new_whole_and_meaningful_prompts_are_kept(tmp_path, target):
    cut = ("What is it that was cut", "length")
    speaker = Speaker("What is a cat?", " what IS a  cat? ", "Too short", cut, " How are you today?\n", "one too many of them")
    counted = []
    with RecordWriter(tmp_path / "out") as writer:
        synthesize(target, 2, writer, speaker, progress=lambda records, tokens: counted.append((records, tokens)))
    assert texts(tmp_path / "out") == ["What is a cat?", "How are you today?"]
    assert speaker.made == 5  # nothing is made once there is enough
    assert counted == [(1, 1), (0, 1), (0, 1), (0, 1), (1, 1)]


def test_it_starts_where_the_user_speaks(tmp_path, target):
    speaker = Speaker("What is a cat?")
    with RecordWriter(tmp_path / "out") as writer:
        synthesize(target, 1, writer, speaker, batch_size=3)
    assert speaker.prompts == [[encode(target.tokenizer, "<|start|>user\n")] * 3]


def test_all_that_is_missing_is_asked_for_at_once(tmp_path, target):
    """In batches, each would wait for its longest text."""
    speaker = Speaker(*(f"What is the number {n}?" for n in range(9)))
    with RecordWriter(tmp_path / "out") as writer:
        synthesize(target, 9, writer, speaker, batch_size=2)
    assert [len(prompts) for prompts in speaker.prompts] == [9] and len(texts(tmp_path / "out")) == 9


def test_a_resumed_run_draws_new_text_under_new_ids(tmp_path, target):
    first, second = Speaker("What is a cat?"), Speaker("What is a cat?", "What is a dog?")
    with RecordWriter(tmp_path / "out") as writer:
        synthesize(target, 1, writer, first)
    with RecordWriter(tmp_path / "out") as writer:
        synthesize(target, 2, writer, second)
    assert texts(tmp_path / "out") == ["What is a cat?", "What is a dog?"]
    assert [r["id"] for r in read_records(tmp_path / "out")] == ["synthetic-0", "synthetic-1"]
    assert not set(first.seeds[0]) & set(second.seeds[0])


def test_a_file_with_prompts_thrown_out_is_filled_up_under_free_ids(tmp_path, target):
    """Fails if an id is used twice: the count would stand still, and the file grow for ever."""
    with RecordWriter(tmp_path / "out") as writer:
        synthesize(target, 3, writer, Speaker("What is a cat?", "What is a dog?", "What is a hen?"))
    lines = (tmp_path / "out").read_text().splitlines(keepends=True)
    (tmp_path / "out").write_text(lines[0] + lines[2])
    with RecordWriter(tmp_path / "out") as writer:
        synthesize(target, 4, writer, Speaker("What is a cow?", "What is a pig?"))
    assert [r["id"] for r in read_records(tmp_path / "out")] == ["synthetic-0", "synthetic-2", "synthetic-3", "synthetic-4"]


def test_every_text_is_drawn_by_a_seed_of_its_own(tmp_path, target):
    """Across rounds, too: a round with the seeds of the one before would never give a new prompt."""
    speaker = Speaker(*["no"] * 7, "What is a cat?")
    with RecordWriter(tmp_path / "out") as writer:
        synthesize(target, 1, writer, speaker, batch_size=3, seed=4)
    seeds = [seed for seeds in speaker.seeds for seed in seeds]
    assert len(seeds) == 9 and len(set(seeds)) == 9
    other = Speaker("What is a cat?")
    with RecordWriter(tmp_path / "other") as writer:
        synthesize(target, 1, writer, other, batch_size=3, seed=5)
    assert not set(seeds) & set(other.seeds[0])


def test_a_model_with_nothing_to_say_does_not_run_for_ever(tmp_path, target):
    speaker = Speaker()
    with RecordWriter(tmp_path / "out") as writer, pytest.raises(Pard2Error, match=f"no new prompt in {MOST_BARREN} texts.*`temperature`"):
        synthesize(target, 1, writer, speaker)
    assert speaker.made == MOST_BARREN


def test_decoding_that_fails_says_why(tmp_path, target):
    """It used to look like a model with nothing to say."""
    with RecordWriter(tmp_path / "out") as writer, pytest.raises(Pard2Error, match="wrote no prompt: NaN"):
        synthesize(target, 1, writer, Speaker(("", "error")))


def test_no_tokenizer_is_one_line(tmp_path):
    with RecordWriter(tmp_path / "out") as writer, pytest.raises(Pard2Error, match="no tokenizer"):
        synthesize(tiny_target(), 1, writer, Speaker())
