"""Answers of the target: every prompt exactly once, whatever happens in between."""

import filecmp
import json
import re
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest

from chat_tokenizer import END_ID, VOCABULARY, byte_tokenizer
from pard2 import Completion, Engine, SamplingParams, Stats
from pard2.data.answers import Answerer
from pard2.data.chat import prompt_ids
from pard2.data.local import local_replier
from pard2.data.records import Record, RecordWriter, read_records
from pard2.data.regenerate import Failure, answer_settings, check_same_run, failures_path
from pard2.data.regenerate import regenerate as library_regenerate
from pard2.errors import Pard2Error
from pard2.models.draft import Draft
from pard2.models.target import Target
from tiny import greedy, set_eos, tiny_draft, tiny_target


@pytest.fixture(scope="module")
def target():
    target = tiny_target(vocab=VOCABULARY, context=128)
    target.tokenizer = byte_tokenizer()
    set_eos(target, END_ID)
    return target


def prompts(*texts):
    return [{"id": f"p{i}", "messages": [{"role": "user", "content": text}]} for i, text in enumerate(texts)]


def same(one: Path, other: Path) -> bool:
    """Compared by pytest itself, long bytes that differ take it minutes to show."""
    return filecmp.cmp(one, other, shallow=False)


def answers(path):
    return {r["id"]: r for r in read_records(path)}


def listed(output: Path) -> list[Failure]:
    return [json.loads(line) for line in failures_path(output).read_text().splitlines()]


def engine_answerer(target: Target, batch_size: int = 32, temperature: float = 0.0, limit: int = 5, draft: Draft | None = None) -> Answerer:
    engine = Engine(target, draft, max_batch=batch_size, cache_tokens=4096)

    def answer(prompts: list[list[int]], seeds: list[int]) -> Iterator[Completion]:
        return engine.completions(prompts, [SamplingParams(max_tokens=limit, temperature=temperature, seed=seed) for seed in seeds])

    return answer


def regenerate(
    target: Target,
    records: list[Record],
    writer: RecordWriter,
    limit: int = 5,
    batch_size: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
    draft: Draft | None = None,
    answer: Answerer | None = None,
    progress: Callable[[int, int], None] = lambda records, tokens: None,
) -> list[Failure]:
    answer = answer or engine_answerer(target, batch_size, temperature, limit, draft)
    settings = answer_settings(limit, temperature, 1.0, seed)
    return library_regenerate(records, writer, local_replier(target, answer, settings), target.name, settings, progress=progress)


SEVEN = prompts(*("word " * n for n in (3, 1, 4, 1, 5, 9, 2)))


def test_answers_are_the_targets_own(tmp_path, target):
    with RecordWriter(tmp_path / "out") as writer:
        assert regenerate(target, [{**SEVEN[0], "source": "x"}], writer, limit=6) == []
    made = answers(tmp_path / "out")["p0"]
    expected = greedy(target, prompt_ids(target.tokenizer, SEVEN[0]["messages"]), 6)
    assert made["messages"][:-1] == SEVEN[0]["messages"] and made["source"] == "x"
    assert made["messages"][-1] == {"role": "assistant", "content": target.tokenizer.decode(expected, skip_special_tokens=True)}
    assert made["model"] == target.name and made["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("template", "error"), [(None, f"token id {VOCABULARY}.*embedding"), ("{{ messages[0].content | replace('<x>', '') }}", "empty")]
)
def test_a_prompt_of_ids_that_the_model_lacks_or_of_none_is_a_failure_of_its_own(tmp_path, template, error):
    """As where a token was added and the embedding not resized; all others are answered."""
    target = tiny_target(vocab=VOCABULARY, context=128)
    target.tokenizer = byte_tokenizer(special=["<pad>", "<x>"], **({} if template is None else {"template": template}))
    with RecordWriter(tmp_path / "out") as writer:
        (failure,) = regenerate(target, prompts("one", "<x>", "two"), writer)
    assert failure["id"] == "p1" and re.search(error, failure["error"])
    assert sorted(answers(tmp_path / "out")) == ["p0", "p2"]


def test_an_answer_that_ends_by_itself_says_stop(tmp_path, target):
    ids = prompt_ids(target.tokenizer, SEVEN[0]["messages"])
    expected = greedy(target, ids, 6)
    stop = next(t for i, t in enumerate(expected) if i and t not in expected[:i])
    set_eos(target, stop)
    try:
        with RecordWriter(tmp_path / "out") as writer:
            regenerate(target, SEVEN[:1], writer, limit=6)
    finally:
        set_eos(target, END_ID)
    assert answers(tmp_path / "out")["p0"]["finish_reason"] == "stop"


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_ctrl_c_in_the_middle_and_again_gives_the_same_file(tmp_path, target, temperature):
    """Fails if a seed depends on anything but the record's id, or if a record is done twice."""
    with RecordWriter(tmp_path / "whole") as writer:
        regenerate(target, SEVEN, writer, batch_size=2, temperature=temperature)

    def interrupt(_records, _tokens):
        raise KeyboardInterrupt

    for count in (1, 2):
        with pytest.raises(KeyboardInterrupt), RecordWriter(tmp_path / "parts") as writer:
            regenerate(target, SEVEN, writer, batch_size=2, temperature=temperature, progress=interrupt)
        assert len(answers(tmp_path / "parts")) == count  # what was answered is on the disk
    with RecordWriter(tmp_path / "parts") as writer:
        regenerate(target, SEVEN, writer, batch_size=3, temperature=temperature)
    assert same(tmp_path / "parts", tmp_path / "whole")
    assert [r["id"] for r in read_records(tmp_path / "parts")] == [r["id"] for r in SEVEN]


def test_seeds_make_sampled_answers_differ(tmp_path, target):
    """Fails if every record, or every run, draws by the same numbers."""
    same = prompts("word", "word")
    for seed in (0, 1):
        with RecordWriter(tmp_path / str(seed)) as writer:
            regenerate(target, same, writer, limit=12, temperature=1.0, seed=seed)
    said = [answers(tmp_path / seed)[name]["messages"][-1]["content"] for seed in "01" for name in ("p0", "p1")]
    assert len(set(said)) == 4


def test_a_draft_changes_no_answer(tmp_path, target):
    for name, draft in (("plain", None), ("drafted", tiny_draft(target, mask_token=258))):
        for temperature in (0.0, 1.0):
            with RecordWriter(tmp_path / f"{name}{temperature}") as writer:
                regenerate(target, SEVEN, writer, limit=20, temperature=temperature, draft=draft)
    for temperature in (0.0, 1.0):
        assert same(tmp_path / f"plain{temperature}", tmp_path / f"drafted{temperature}")


def test_decoding_that_fails_on_one_record_does_not_stop_the_others(tmp_path, target):
    real = engine_answerer(target)

    def answer(token_ids: list[list[int]], seeds: list[int]) -> Iterator[Completion]:
        made = list(real(token_ids, seeds))
        made[1] = Completion(token_ids=[], text=None, finish_reason="error", prompt_tokens=0, stats=Stats(), method="ar", error="NaN")
        return iter(made)

    with RecordWriter(tmp_path / "out") as writer:
        failures = regenerate(target, SEVEN, writer, answer=answer)
    assert [(f["id"], f["error"]) for f in failures] == [("p1", "NaN")]
    assert list(answers(tmp_path / "out")) == ["p0", "p2", "p3", "p4", "p5", "p6"]


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (
            "other",
            answer_settings(5, 0.7, 0.9, 3),
            "holds answers made with `target` tiny-llama, and this is `target` other; give the same `target`, name another",
        ),
        ("tiny-llama", answer_settings(6, 0.7, 0.9, 3), "with `max_tokens` 5, and this is `max_tokens` 6; give the same `max_tokens`"),
        ("tiny-llama", answer_settings(5, 0.0, 0.9, 3), "with `temperature` 0.7, and this is `temperature` 0.0"),
        ("tiny-llama", answer_settings(5, 0.7, 1.0, 3), "with `top_p` 0.9, and this is `top_p` 1.0"),
        ("tiny-llama", answer_settings(5, 0.7, 0.9, 4), "with `seed` 3, and this is `seed` 4"),
        ("tiny-llama", answer_settings(5, 0.7, 0.9, 3, None, {"x": 1}), 'with no `template_arguments`, and this is `template_arguments` {"x": 1}'),
    ],
)
def test_a_file_is_not_resumed_with_another_target_or_other_settings(tmp_path, target, model, settings, message):
    """It would hold the answers of two models under one name, or half of it greedy and half of it not."""
    begun = answer_settings(5, 0.7, 0.9, 3)
    with RecordWriter(tmp_path / "out") as writer:
        check_same_run(writer, target.name, begun)
        library_regenerate(SEVEN[:1], writer, local_replier(target, engine_answerer(target), begun), target.name, begun)
        check_same_run(writer, target.name, begun)
        with pytest.raises(Pard2Error, match=message):
            check_same_run(writer, model, settings)


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "another"}]},
        {"messages": [{"role": "system", "content": "x"}, *SEVEN[0]["messages"]]},
        {"tools": [{"name": "look"}]},
        {"chat_template_kwargs": {"thinking": True}},
    ],
)
def test_a_file_is_not_resumed_with_edited_prompts_under_old_ids(tmp_path, target, change):
    """It kept the old answers, and asked the rest of the new file."""
    settings = answer_settings(5, 0.0, 1.0, 0)
    old = {"answer": "kept", "made": date(2026, 1, 2)}  # other columns may change, and need not be JSON's
    with RecordWriter(tmp_path / "out") as writer:
        regenerate(target, [SEVEN[0] | old], writer)
        check_same_run(writer, target.name, settings, [SEVEN[0] | {"answer": "new"}, *SEVEN[1:]])
        asked = SEVEN[0]["messages"]
        check_same_run(writer, target.name, settings, [{**SEVEN[0], "messages": [*asked, {"role": "assistant", "content": "an old answer"}]}])
        with pytest.raises(Pard2Error, match="answers another prompt under the id 'p0' than `source` holds now"):
            check_same_run(writer, target.name, settings, [*SEVEN[1:], SEVEN[0] | change])


def test_settings_that_greedy_answers_ignore_may_change(tmp_path, target):
    assert answer_settings(5, 0.0, 0.9, 3) == answer_settings(5, 0.0, 1.0, 4)


def test_answers_of_unknown_settings_are_not_continued(tmp_path, target):
    (tmp_path / "out").write_text('{"id": "p0", "messages": [{"role": "user", "content": "x"}]}\n')
    with RecordWriter(tmp_path / "out") as writer, pytest.raises(Pard2Error, match="made with no `target`, and this is `target` tiny-llama"):
        check_same_run(writer, target.name, answer_settings(5, 0.0, 1.0, 0))


def test_what_cannot_be_answered_is_returned_with_its_reason(tmp_path, target):
    records = [*prompts("ok", "x" * 200), {"id": "mute", "messages": [{"role": "system", "content": "x"}]}]
    with RecordWriter(tmp_path / "out") as writer:
        failures = regenerate(target, records, writer, limit=5)
        assert len(writer.done) + len(failures) == len(records)
    reasons = {f["id"]: f["error"] for f in failures}
    assert "leaves no room in 128" in reasons["p1"] and reasons["mute"] == "no user message"
    assert listed(tmp_path / "out") == failures


def test_the_list_of_failures_is_of_the_last_run(tmp_path, target):
    """Fails if failures that have been mended since stay listed, or those before a Ctrl-C are lost."""
    records = prompts("x" * 200, "ok", "y" * 200)

    def interrupt(_records, _tokens):
        raise KeyboardInterrupt

    with RecordWriter(tmp_path / "out") as writer:
        regenerate(target, records, writer)
    assert [f["id"] for f in listed(tmp_path / "out")] == ["p0", "p2"]
    with pytest.raises(KeyboardInterrupt), RecordWriter(tmp_path / "out") as writer:
        regenerate(target, records, writer, progress=interrupt)
    assert [f["id"] for f in listed(tmp_path / "out")] == ["p0"]
    with RecordWriter(tmp_path / "out") as writer:
        assert regenerate(target, prompts("a", "b", "c"), writer) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_list_of_failures_that_cannot_be_written_is_one_line(tmp_path, target):
    failures_path(tmp_path / "out").mkdir()
    with RecordWriter(tmp_path / "out") as writer, pytest.raises(Pard2Error, match="cannot write .*failures.jsonl"):
        regenerate(target, prompts("x" * 200), writer)


def test_a_conversation_that_the_template_refuses_does_not_stop_the_others(tmp_path, target):
    tokenizer = target.tokenizer
    target.tokenizer = byte_tokenizer("{% if 'no' in messages[0].content %}{{ raise_exception('never') }}{% endif %}" + tokenizer.chat_template)
    try:
        with RecordWriter(tmp_path / "out") as writer:
            failures = regenerate(target, prompts("no", "yes"), writer, limit=3)
    finally:
        target.tokenizer = tokenizer
    assert [f["id"] for f in failures] == ["p0"] and "never" in failures[0]["error"]
    assert list(answers(tmp_path / "out")) == ["p1"]


def test_what_a_record_says_to_the_template_is_heard(tmp_path, target):
    """Fails if the target answers another prompt than the one that a draft is trained with."""
    tokenizer = target.tokenizer
    target.tokenizer = byte_tokenizer(tokenizer.chat_template + "{{ tools[0].name }}{{ '<think>' if thinking }}")
    asked = []

    def answer(prompts: list[list[int]], seeds: list[int]) -> Iterator[Completion]:
        asked.extend(target.tokenizer.decode(ids) for ids in prompts)
        return (Completion(token_ids=[1], text="a", finish_reason="stop", prompt_tokens=1, stats=Stats(), method="ar") for _ in prompts)

    record = {**SEVEN[0], "tools": [{"name": "look"}], "chat_template_kwargs": {"thinking": True}}
    try:
        with RecordWriter(tmp_path / "out") as writer:
            assert regenerate(target, [record], writer, answer=answer) == []
    finally:
        target.tokenizer = tokenizer
    assert asked[0].endswith("look<think>")
    assert answers(tmp_path / "out")["p0"]["tools"] == [{"name": "look"}]


def test_two_records_of_one_id_are_refused(tmp_path, target):
    """The second would be answered in one run and skipped in a resumed one."""
    with RecordWriter(tmp_path / "out") as writer, pytest.raises(Pard2Error, match="'p0' occurs twice"):
        regenerate(target, [SEVEN[0], SEVEN[0]], writer, limit=3)


def test_no_tokenizer_is_one_line(tmp_path):
    with RecordWriter(tmp_path / "out") as writer, pytest.raises(Pard2Error, match="no tokenizer"):
        regenerate(tiny_target(), SEVEN, writer, limit=3)
