"""From named sources to examples: nothing lost, nothing taken for another, nothing longer than allowed."""

import json

import numpy as np
import pytest

from chat_tokenizer import CHATML, byte_tokenizer
from pard2.data.chat import tokenize_record
from pard2.data.corpus import Example, Examples, ExamplesBuilder
from pard2.data.examples import load_examples
from pard2.errors import Pard2Error

TOKENIZER = byte_tokenizer(CHATML)
EOS = frozenset({TOKENIZER.eos_token_id})


def record(name, answer="yes"):
    return {"id": name, "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": answer}]}


def write(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def load(*sources, max_length=1000, **options):
    return load_examples(list(sources), TOKENIZER, EOS, max_length, **options)


def made(rec):
    (example,) = tokenize_record(TOKENIZER, rec, EOS)
    return example


LENGTH = len(made(record("a", "b")).token_ids) - 1  # of all but the answer


def test_flat_arrays_give_back_every_example(tmp_path):
    records = [record(f"r{n}", "word " * (1 + n % 7)) for n in range(600)]  # more than one batch
    examples = load(write(tmp_path / "f", *records))
    assert len(examples) == 600 and list(examples) == [made(r) for r in records]
    assert examples[-1] == examples[599] and examples[3:5] == [examples[3], examples[4]]
    assert examples.lengths.tolist() == [len(e.token_ids) for e in examples]
    assert (examples.tokens.dtype, examples.predicted.dtype, examples.offsets.dtype) == (np.int32, np.bool_, np.int64)
    assert all(np.shares_memory(e.token_ids, examples.tokens) and np.shares_memory(e.predicted, examples.predicted) for e in examples)
    with pytest.raises(IndexError):
        examples[600]


def test_sources_follow_each_other_and_equal_ids_are_told_apart(tmp_path):
    """A feature cache that went by the id alone would give one conversation the other's states."""
    one = write(tmp_path / "one", record("a", "1"), record("b", "2"), record("a", "3"))
    two = write(tmp_path / "two", record("a", "4"))
    examples = load(one, two, one)
    assert examples.ids == ["a", "b", f"a@{one}", f"a@{two}", f"a@{one}~2", f"b@{one}", f"a@{one}~3"]
    assert [TOKENIZER.decode(e.token_ids)[-9] for e in examples] == list("1234123")


def test_a_token_that_the_target_lacks_is_refused_by_its_record(tmp_path):
    """Training would end with an IndexError in the embedding, or learn another token's row."""
    tokenizer = byte_tokenizer(CHATML, special=["<new>"])  # id 258
    source = write(tmp_path / "f", record("a"), record("b", "the <new> one"), record("c"))
    assert len(load_examples([source], tokenizer, EOS, 1000, vocab_size=259)) == 3
    with pytest.raises(Pard2Error, match="record b holds token id 258.*0 to 257.*embedding"):
        load_examples([source], tokenizer, EOS, 1000, vocab_size=258)


@pytest.mark.timeout(20)
def test_many_equal_ids_take_no_quadratic_time():
    builder, example = ExamplesBuilder(), made(record("a"))
    for _ in range(20_000):
        builder.add(example, "f")
    assert len(builder) == 20_000


@pytest.mark.parametrize(("extra", "count"), [(0, 2), (-1, 1)])
def test_the_longest_allowed_length_is_allowed(tmp_path, extra, count):
    source = write(tmp_path / "f", record("short", "a"), record("long", "abcd"))
    examples = load(source, max_length=LENGTH + 4 + extra, on_long="skip")
    assert (len(examples), examples.skipped, examples.cut) == (count, 2 - count, 0)


def test_a_long_conversation_stops_the_run_by_default(tmp_path):
    source = write(tmp_path / "f", record("short", "a"), record("long", "abcd"))
    with pytest.raises(Pard2Error) as info:
        load(source, max_length=LENGTH + 3)
    assert str(info.value) == (
        f"{source}: record long has {LENGTH + 4} tokens, more than `max_length` {LENGTH + 3}; raise that, or set `on_long` to cut or skip"
    )


def test_cut_keeps_tokens_and_mask_together(tmp_path):
    examples = load(write(tmp_path / "f", record("a", "abcd")), max_length=LENGTH, on_long="cut")
    whole = made(record("a", "abcd"))
    assert examples.cut == 1 and examples.skipped == 0
    assert examples[0] == Example("a", whole.token_ids[:-4], whole.predicted[:-4]) and any(examples[0].predicted)


def test_a_cut_that_leaves_no_answer_is_counted_as_skipped(tmp_path):
    prompt = made(record("a", "abcd")).predicted.tolist().index(True)
    source = write(tmp_path / "f", record("a", "abcd"), {"id": "t", "text": "hey"})
    examples = load(source, max_length=prompt, on_long="cut")
    assert examples.ids == ["t"] and (examples.skipped, examples.cut) == (1, 0)


def test_no_example_left_is_an_error(tmp_path):
    source = write(tmp_path / "f", record("a"), record("b"))
    for choice in ("skip", "cut"):
        with pytest.raises(Pard2Error, match="none of the 2 conversations has an answer within `max_length` 3"):
            load(source, max_length=3, on_long=choice)
    with pytest.raises(Pard2Error, match="empty holds no records"):
        load(source, write(tmp_path / "empty"))


def test_errors_name_source_and_record(tmp_path):
    good, bad = write(tmp_path / "good", record("a")), write(tmp_path / "bad", record("a"), {"id": "b", "messages": record("b")["messages"][:1]})
    with pytest.raises(Pard2Error, match="bad: record b: no token to predict"):
        load(good, bad)


def test_progress_ends_with_all_rows_and_tokens(tmp_path):
    seen = []
    source = write(tmp_path / "f", *(record(f"r{n}") for n in range(300)))
    examples = load(source, source, progress=lambda *state: seen.append(state))
    assert [done for done, _, _ in seen] == [256, 300, 556, 600]
    assert {total for _, total, _ in seen} == {600} and seen[-1][2] == len(examples.tokens)


def test_a_builder_adds_up_what_it_extends_by():
    builder = ExamplesBuilder()
    builder.add(made(record("a")), "one")
    inner = Examples(tokens=np.arange(3, dtype=np.int32), predicted=np.ones(3, bool), offsets=np.array([0, 1, 3]), ids=["a", "b"], skipped=2, cut=1)
    builder.extend(inner, "two")
    examples = builder.build()
    assert examples.ids == ["a", "a@two", "b"] and examples[2].token_ids.tolist() == [1, 2] and (examples.skipped, examples.cut) == (2, 1)
    assert examples.lengths.sum() == len(examples.tokens) == builder.num_tokens


def test_the_arrays_of_one_source_are_copied():
    """Prepared data of billions of tokens would need its memory twice."""
    inner = Examples(tokens=np.arange(3, dtype=np.int32), predicted=np.ones(3, bool), offsets=np.array([0, 1, 3]), ids=["a", "b"])
    builder = ExamplesBuilder()
    builder.extend(inner, "one")
    examples = builder.build()
    assert examples.tokens is inner.tokens and examples.predicted is inner.predicted


def test_examples_that_differ_are_equal():
    """Else the tests that compare them say nothing."""
    example = Example.of("a", [1, 2], [False, True])
    assert example == Example.of("a", [1, 2], [False, True])
    others = [Example.of("b", [1, 2], [False, True]), Example.of("a", [1, 3], [False, True]), Example.of("a", [1, 2], [True, True])]
    assert all(example != other for other in [*others, Example.of("a", [1], [False]), "a"])
