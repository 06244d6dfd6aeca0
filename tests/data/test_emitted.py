"""An answer that was made here is learned token by token, whatever the template makes of its text."""

import json

import pytest

from chat_tokenizer import CHATML, END, byte_tokenizer
from pard2 import Completion, Stats
from pard2.data.chat import encode, prompt_ids, tokenize_record
from pard2.data.conversations import template_arguments
from pard2.data.examples import load_examples
from pard2.data.local import local_replier
from pard2.data.records import RecordWriter, read_records
from pard2.data.regenerate import answer_settings, regenerate
from pard2.errors import Pard2Error
from test_template_shapes import QWEN3, QWQ, R1, R1_DISTILL, V31, turns
from tiny import tiny_target

THINK = ("<think>", "</think>")
THOUGHT = "<think>\nHm.\n</think>\n\nyes"
SETTINGS = answer_settings(50, 0.0, 1.0, 0)


def answered(path, tokenizer, records, ids, finish_reason="stop"):
    """The records, answered with these tokens by a target of this tokenizer."""
    target = tiny_target(vocab=300)
    target.tokenizer = tokenizer
    text = tokenizer.decode(ids[:-1] if finish_reason == "stop" else ids, skip_special_tokens=True)
    made = Completion(token_ids=ids, text=text, finish_reason=finish_reason, prompt_tokens=1, stats=Stats(), method="ar")
    with RecordWriter(path) as writer:
        assert regenerate(records, writer, local_replier(target, lambda prompts, _: iter([made] * len(prompts)), SETTINGS), "t", SETTINGS) == []
    return read_records(path)


def learned(tokenizer, record):
    (made,) = tokenize_record(tokenizer, record, frozenset({tokenizer.eos_token_id}))
    prompt = prompt_ids(tokenizer, record["messages"][:-1], template_arguments(record))
    assert made.token_ids[: len(prompt)].tolist() == prompt and made.predicted.tolist() == [False] * len(prompt) + [True] * (
        len(made.token_ids) - len(prompt)
    )
    return made.token_ids[len(prompt) :].tolist()


@pytest.mark.parametrize("special", [(), THINK], ids=["plain", "special"])
@pytest.mark.parametrize(
    ("template", "said"),
    [(CHATML, THOUGHT), (QWEN3, THOUGHT), (R1, THOUGHT), (V31, "yes")] + [(shape, THOUGHT.removeprefix("<think>\n")) for shape in (R1_DISTILL, QWQ)],
    ids=["chatml", "qwen3", "r1", "v31", "r1-distill", "qwq"],
)
def test_what_was_said_is_what_is_learned(template, said, special, tmp_path):
    """Thoughts that history drops, that the prompt opens, or whose marks are special tokens were lost."""
    tokenizer = byte_tokenizer(template, special=special)
    for finish_reason, ids in (("stop", encode(tokenizer, said + END)), ("length", encode(tokenizer, said)[:-2]), ("stop", encode(tokenizer, END))):
        path = tmp_path / f"{finish_reason}{len(ids)}"
        (record,) = answered(path, tokenizer, [{"id": "a", "messages": turns(["hi"])}], ids, finish_reason)
        assert learned(tokenizer, record) == ids
        examples = load_examples([str(path)], tokenizer, frozenset({tokenizer.eos_token_id}), 1000)
        assert examples[0].token_ids[-len(ids) :].tolist() == ids and examples.notes == {}


def test_tokens_that_no_text_gives_back_are_learned(tmp_path):
    """A byte that is no UTF-8, and a merge that the target did not take."""
    tokenizer = byte_tokenizer(CHATML, merges=[("e", "l")])
    ids = [*encode(tokenizer, "h"), 130, *encode(tokenizer, "e"), *encode(tokenizer, "l"), tokenizer.eos_token_id]
    (record,) = answered(tmp_path / "f", tokenizer, [{"id": "a", "messages": turns(["hi"])}], ids)
    assert learned(tokenizer, record) == ids != encode(tokenizer, record["messages"][-1]["content"] + END)


def test_earlier_answers_are_learned_with_it(tmp_path):
    tokenizer = byte_tokenizer(CHATML)
    record = {"id": "a", "messages": turns(["hi", "hello", "and?"])}
    (record,) = answered(tmp_path / "f", tokenizer, [record], encode(tokenizer, THOUGHT + END))
    (made,) = tokenize_record(tokenizer, record, frozenset({tokenizer.eos_token_id}))
    assert tokenizer.decode([t for t, p in zip(made.token_ids, made.predicted, strict=True) if p]) == f"hello{END}{THOUGHT}{END}"
    assert made.token_ids.tolist() == encode(tokenizer, tokenizer.apply_chat_template(record["messages"], tokenize=False).rstrip("\n"))


@pytest.mark.parametrize(
    ("change", "tokenizer"),
    [
        ({"messages": [*turns(["hi"]), {"role": "assistant", "content": "no"}]}, byte_tokenizer(CHATML)),
        ({"messages": [*turns(["ho"]), {"role": "assistant", "content": "yes"}]}, byte_tokenizer(CHATML)),
        ({"completion_token_ids": [1, 2, 257]}, byte_tokenizer(CHATML)),
        ({"completion_token_ids": []}, byte_tokenizer(CHATML)),
        ({"completion_token_ids": "yes"}, byte_tokenizer(CHATML)),
        ({"completion_token_ids": [-1, 2**70]}, byte_tokenizer(CHATML)),
        ({"completion_hash": None}, byte_tokenizer(CHATML)),
        ({}, byte_tokenizer("Be kind." + CHATML)),
        ({}, byte_tokenizer(CHATML, merges=[("y", "e")])),  # other ids for other letters
    ],
    ids=["answer", "prompt", "ids", "none", "text", "range", "no hash", "template", "tokenizer"],
)
def test_tokens_of_another_text_or_tokenizer_are_not_learned_and_that_is_told(change, tokenizer, tmp_path):
    (record,) = answered(tmp_path / "f", byte_tokenizer(CHATML), [{"id": "a", "messages": turns(["hi"])}], encode(byte_tokenizer(), "yes" + END))
    record = {**record, **change}
    (tmp_path / "g").write_text(json.dumps(record) + "\n")
    examples = load_examples([str(tmp_path / "g")], tokenizer, frozenset({tokenizer.eos_token_id}), 1000)
    assert tokenizer.decode(examples[0].token_ids).endswith(record["messages"][-1]["content"] + END + "\n")
    assert examples.notes == {"answers learned from their text, as their token ids are of another tokenizer, template or text": 1}


def test_a_record_that_is_answered_again_has_the_new_tokens_or_none(tmp_path):
    tokenizer = byte_tokenizer(CHATML)
    (first,) = answered(tmp_path / "f", tokenizer, [{"id": "a", "messages": turns(["hi"])}], encode(tokenizer, "yes" + END))
    (again,) = answered(tmp_path / "g", tokenizer, [first], encode(tokenizer, "no" + END))
    assert learned(tokenizer, again) == encode(tokenizer, "no" + END)
    (more,) = answered(tmp_path / "h", tokenizer, [{**first, "messages": [*first["messages"], *turns(["so?"])]}], encode(tokenizer, "no" + END))
    assert "no" + END in tokenizer.decode(tokenize_record(tokenizer, more, frozenset({tokenizer.eos_token_id}))[0].token_ids)


def test_what_is_left_out_is_counted_and_most_of_a_file_is_refused(tmp_path):
    tokenizer = byte_tokenizer(R1_DISTILL)
    good = {"messages": turns(["hi", THOUGHT])}
    empty, plain = {"messages": turns(["hi", " "])}, {"messages": turns(["hi", "hello"])}
    both = {"messages": turns(["hi", "hello", "and?", THOUGHT])}

    def load(*rows):
        (tmp_path / "f").write_text("".join(json.dumps({"id": str(n)} | row) + "\n" for n, row in enumerate(rows)))
        return load_examples([str(tmp_path / "f")], tokenizer, frozenset({tokenizer.eos_token_id}), 1000)

    examples = load(good, empty, both, plain)
    assert examples.ids == ["0", "2"]
    assert examples.notes == {"answers left out: empty": 1, "answers left out: not shown where decoding begins them": 2}
    with pytest.raises(Pard2Error, match=r"f: record 1: the chat template does not show answer 1 where .* \(and 1 of 3 records like it\)"):
        load(good, plain, plain)
    with pytest.raises(Pard2Error, match="f: record 0: no token to predict: answer 1 is empty"):
        load(empty)
    silent = {"messages": [turns(["hi"])[0], {"role": "assistant", "content": THOUGHT, "weight": 0}]}
    assert load(good, silent, silent, silent).notes == {"answers that are context only, as they say": 3}
    with pytest.raises(Pard2Error, match="no answer is left to learn; 1 answers that are context only"):
        load(silent)
