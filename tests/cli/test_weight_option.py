"""`--weights`, and `pard2 env`."""

import json

import pytest

from pard2.kernels.weight_format import has_panels

needs_panels = pytest.mark.skipif(not has_panels(), reason="no numba, or a processor that our kernels are not written for")
NOTE = "in int8 is another model by a hair; decoding is lossless against that one"


@needs_panels
def test_int8_is_said_and_lossless_against_itself(pard2, target_directory, draft_directory):
    models = ("-t", target_directory, "-d", draft_directory, "--device", "cpu", "--weights", "int8")
    texts = {}
    for method in ("ar", "pard2-ti", "pard2-td"):
        result = pard2("generate", *models, "-m", method, "-p", "hi", "--max-new-tokens", 24, "--json")
        assert result.code == 0 and result.err.count(NOTE) == 1
        texts[method] = json.loads(result.out)["token_ids"]
    assert texts["ar"] == texts["pard2-ti"] == texts["pard2-td"]
    for method in ("pard2-ti", "pard2-td"):
        result = pard2("verify", *models, "-m", method, "--max-new-tokens", 10, "--samples", 0, "--draft-tokens", 3, "--json")
        found = json.loads(result.out)
        assert found["method"] == method and all(prompt["lossless"] for prompt in found["prompts"]), method
        assert found["weights"] == "int8" and NOTE in result.err


@needs_panels
def test_a_bench_keeps_which_weights_it_was(pard2, target_directory, draft_directory, tmp_path):
    prompts, file = tmp_path / "prompts.jsonl", tmp_path / "result.json"
    prompts.write_text(json.dumps({"id": "a", "messages": [{"role": "user", "content": "hi"}]}) + "\n")
    models = ("-t", target_directory, "-d", draft_directory, "--device", "cpu", "--weights", "int8")
    result = pard2("bench", *models, "-s", prompts, "--max-new-tokens", 8, "--json", file)
    assert result.code == 0 and result.err.count(NOTE) == 1
    assert json.loads(file.read_text())["plan"]["weights"] == "int8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights", "int4"), "--weights 'int4' is not one of auto, bf16, int8"),
        (("--weights", "bf16", "--dtype", "float32"), "--weights bf16 does not go with --dtype float32; leave one of them away"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "bench", "verify", "chat"])
def test_what_does_not_fit_is_one_line(pard2, target_directory, command, options, message, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"id": "a", "messages": [{"role": "user", "content": "hi"}]}) + "\n")
    more = {"generate": ("-p", "hi", "-m", "ar"), "bench": ("-s", prompts, "-m", "ar"), "verify": ("-m", "ar"), "chat": ("-m", "ar")}[command]
    assert pard2(command, "-t", target_directory, "--device", "cpu", *more, *options).error == message


def test_env_shows_what_decodes_here(pard2, monkeypatch, tmp_path):
    monkeypatch.setenv("PARD2_CACHE", str(tmp_path))
    monkeypatch.setattr("pard2.runtime.fastest_format._milliseconds", lambda name, rows: rows + len(name))
    found = json.loads(pard2("env", "--json").out)
    assert found["cache"] == str(tmp_path) and found["hardware"]["cores"] and found["rows"] == [1, 6, 24, 96]
    for name, each in found["milliseconds"].items():
        assert each == [rows + len(name) for rows in found["rows"]]
    shown = pard2("env").out
    assert all(name in shown for name in found["milliseconds"]) and str(tmp_path) in shown.replace("\n", "")
    if has_panels():
        assert found["chosen"]["1"]["draft"] == "int8" and "one sequence: target" in shown
