"""`data prepare` and `preview`: checked before they start, written whole, and marked exactly."""

import json

import pytest

from pard2.data import prepared


@pytest.fixture
def answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    rows = [{"id": f"p{n}", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x" * n or "y"}]} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(pard2, target_directory, answers, tmp_path):
    return lambda *options: pard2("data", "prepare", answers, "-t", target_directory, "-o", tmp_path / "made", *options)


def test_it_says_its_plan_and_what_became_of_it(run, tmp_path, answers, pard2, target_directory):
    result = run()
    assert result.code == 0 and result.out == "", result
    assert "5 conversations to tokenise" in result.err and "up to about" in result.err
    assert "5 examples of" in result.err and "0 skipped, 0 cut" in result.err
    assert json.loads((tmp_path / "made" / "manifest.json").read_text())["counts"]["examples"] == 5
    preview = pard2("data", "preview", tmp_path / "made", "-t", target_directory, "-n", 1)
    assert preview.code == 0 and "⟦y<|end|>⟧" in preview.out and "p1" not in preview.out


def test_long_ones(run, tmp_path):
    assert "record p4 has" in run("--max-length", 26).error and not (tmp_path / "made").exists()
    assert "1 cut" in run("--max-length", 26, "--on-long", "cut").err
    assert "is not one of raise, cut, skip" in run("--force", "--on-long", "drop").error


def test_a_long_conversation_is_shown_up_to_the_length(pard2, target_directory, answers):
    result = pard2("data", "preview", answers, "-t", target_directory, "-n", 5, "--max-length", 25)
    assert "⟦xxx<|end|>⟧" in result.out and "⟦xxxx⟧" in result.out


def test_an_output_that_would_be_lost_is_refused_before_anything_is_read(pard2, tmp_path, answers):
    def go(source, *options):
        return pard2("data", "prepare", source, "-t", "no/such-model", "-o", tmp_path / "made", *options)

    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "notes").write_text("mine")
    assert "not empty; name another directory with -o" in go(answers).error
    assert "holds no prepared data, so --force will not replace it" in go(answers, "--force").error
    assert (tmp_path / "made" / "notes").read_text() == "mine"


def test_force_replaces_prepared_data_and_its_sources_must_be_raw(run, pard2, tmp_path, target_directory):
    run()
    assert "not empty" in run().error
    assert run("--force").code == 0
    again = pard2("data", "prepare", tmp_path / "made", "-t", target_directory, "-o", tmp_path / "other")
    assert "is prepared already; name it in data.train" in again.error


def test_ctrl_c_leaves_nothing(run, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepared, "save_file", interrupted)
    assert run().code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


def test_preview_marks_exactly_the_answer(pard2, target_directory, tmp_path):
    file = tmp_path / "f.jsonl"
    file.write_text(json.dumps({"id": "a", "messages": [{"role": "user", "content": "héé?"}, {"role": "assistant", "content": "yé[s]"}]}) + "\n")
    result = pard2("data", "preview", file, "-t", target_directory)
    assert result.code == 0
    assert "<|start|>user\nhéé?<|end|>\n<|start|>assistant\n⟦yé[s]<|end|>⟧\n" in result.out
    assert "a: 7 of 33 tokens are predicted" in result.out
    assert result.out.endswith("1 examples of 33 tokens, 21.2% of them predicted; the longest has 33; 0 are longer than --max-length 512\n")


def test_preview_shows_so_many_conversations_of_all_sources_and_sums_up_all(pard2, target_directory, answers, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "other", "text": "once upon"}\n')
    result = pard2("data", "preview", other, answers, "-t", target_directory, "-n", 2, "--max-length", 25)
    assert "other: 8 of 9 tokens" in result.out and "o⟦nce upon⟧" in result.out
    assert "p0:" in result.out and "p1:" not in result.out
    assert "6 examples of" in result.out and "the longest has 27; 2 are longer than --max-length 25" in result.out


def test_preview_of_an_empty_loss_mask(pard2, target_directory, tmp_path):
    file = tmp_path / "f.jsonl"
    file.write_text('{"id": "p0", "messages": [{"role": "user", "content": "hi"}]}\n')
    assert "record p0: no token to predict" in pard2("data", "preview", file, "-t", target_directory).error
