"""`generate`: what it prints, and every way in which a user can get it wrong."""

import json
import shutil

import pytest
import torch

from conftest import CONTEXT
from pard2.data.chat import prompt_ids
from pard2.engine.engine import Engine
from pard2.models.checkpoint import save_draft
from pard2.models.target import Target
from tiny import greedy, tiny_lm_draft


@pytest.fixture
def ask(pard2, target_directory):
    """Runs `generate` on the tiny target in float32; later options win."""
    return lambda *options: pard2("generate", "-t", target_directory, "-p", "hello", "--dtype", "float32", "--device", "cpu", *options)


def test_json_has_the_promised_keys_and_the_targets_text(ask, target_directory, draft_directory):
    target = Target.from_pretrained(str(target_directory), "float32", "cpu")
    prompt = prompt_ids(target.tokenizer, [{"role": "user", "content": "hello"}])
    expected = greedy(target, prompt, 20)
    for method in ("ar", "vsd", "pard", "pard2-ti", "pard2-td"):
        result = ask("-d", draft_directory, "-m", method, "--max-new-tokens", 20, "--json")
        assert result.code == 0, result
        answer = json.loads(result.out)
        assert list(answer) == ["text", "token_ids", "prompt_tokens", "completion_tokens", "finish_reason", "method", "stats"]
        assert answer["token_ids"] == expected and answer["method"] == method
        assert answer["prompt_tokens"] == len(prompt) and answer["completion_tokens"] == len(expected)
        assert answer["finish_reason"] == "length"
        wanted = "cycles proposed accepted acceptance_length accepted_by_position accepted_per_cycle prefill_seconds decode_seconds tokens_per_second"
        assert set(wanted.split()) <= set(answer["stats"])


def test_json_alone_is_on_standard_output(ask, draft_directory):
    result = ask("-d", draft_directory, "--json")
    assert result.out.count("\n") == 1 and json.loads(result.out)["method"] == "pard2-td"


def test_text_goes_to_standard_output_and_the_summary_does_not(ask):
    result = ask("--max-new-tokens", 5)
    assert result.code == 0 and "tokens/s" in result.err and "tokens/s" not in result.out


def test_raw_leaves_the_chat_template_out(ask):
    assert json.loads(ask("--raw", "--json").out)["prompt_tokens"] == len("hello")


def test_unknown_models(pard2, ask, tmp_path):
    assert "no model 'no/such-model'" in pard2("generate", "-t", "no/such-model", "-p", "x").error
    assert "no model 'a b'" in pard2("generate", "-t", "a b", "-p", "x").error
    assert "no such GGUF file" in pard2("generate", "-t", "none.gguf", "-p", "x").error
    assert "no model" in ask("-d", tmp_path / "none").error


def test_prompts_that_cannot_be_answered(ask):
    assert "the prompt is empty" in ask("-p", "").error
    assert "the prompt is empty" in ask("-p", " \n").error
    too_long = ask("-p", "x" * CONTEXT, "--raw", "--max-new-tokens", 3)
    assert too_long.code == 0
    assert f"has {CONTEXT + 1} tokens" in ask("-p", "x" * (CONTEXT + 1), "--raw").error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--draft-tokens", "0"], "--draft-tokens 0: at least 1"),
        (["--draft-tokens", "7"], "--draft-tokens 7: this draft was trained for 6"),
        (["--draft-tokens", "many"], "--draft-tokens 'many' is neither"),
        (["-m", "medusa"], "-m 'medusa' is not one of ar, vsd"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["--dtype", "int4"], "--dtype 'int4' is not one of"),
        (["--device", "tpu9"], "--device 'tpu9'"),
    ],
)
def test_options_that_make_no_sense_name_themselves(ask, draft_directory, options, message):
    assert message in ask("-d", draft_directory, *options).error


def test_a_method_without_its_draft(ask, lm_directory):
    assert "needs a draft; name one with -d" in ask("-m", "pard2-td").error
    assert "not a PARD-2 draft" in ask("-m", "pard2-td", "-d", lm_directory).error
    assert "no mask token" in ask("-m", "pard", "-d", lm_directory).error


def test_a_draft_of_another_vocabulary(ask, tmp_path):
    save_draft(tiny_lm_draft(vocab=61), tmp_path / "other")
    assert "vocabulary of 61" in ask("-d", tmp_path / "other").error


def copy(source, tmp_path):
    shutil.copytree(source, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_corrupt_weights(ask, draft_directory, tmp_path, damage):
    directory = copy(draft_directory, tmp_path)
    file = directory / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "noise": b"\x7f" * 100}[damage])
    assert str(directory) in ask("-d", directory).error


def test_a_pickle_that_would_run_code_does_not_run(ask, pard2, draft_directory, tmp_path):
    directory = copy(draft_directory, tmp_path)
    trace = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (open, (str(trace), "w"))

    torch.save({"target_proj.weight": Evil()}, directory / "warp_model.bin")
    assert "corrupt or holds more than tensors" in ask("-d", directory).error
    assert "corrupt or holds more than tensors" in pard2("draft", "info", directory).out
    assert not trace.exists()
    torch.load(directory / "warp_model.bin", weights_only=False)  # the trap itself works
    assert trace.exists()


def test_a_lost_projection_says_that_ti_would_work_and_it_does(ask, draft_directory, tmp_path):
    directory = copy(draft_directory, tmp_path)
    (directory / "warp_model.bin").unlink()
    assert "-m pard2-ti" in ask("-d", directory).error
    assert ask("-d", directory, "-m", "pard2-ti").code == 0


def test_missing_options_are_usage_errors(pard2):
    assert pard2("generate", "-t", "x").code == 2
    assert pard2("generate", "-t", "x", "-p", "y", "--no-such-option").code == 2
    assert pard2("nonsense").code == 2


def test_ctrl_c_is_one_line_and_130(ask, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "_run", interrupted)
    result = ask()
    assert result.code == 130 and result.out == ""
    assert result.err.endswith("error: interrupted\n") and "Traceback" not in result.err


def test_a_bug_keeps_its_traceback(ask, monkeypatch):
    """Only a user's mistake may be told in one line."""

    def broken(*_args, **_kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(Engine, "_run", broken)
    with pytest.raises(ZeroDivisionError):
        ask()
