"""`pard2 verify`: its verdict, its exit code, and what it refuses."""

import dataclasses
import json

import pytest

from conftest import CONTEXT
from pard2.engine import randomness
from pard2.engine.engine import Engine


@pytest.fixture
def verify(pard2, target_directory, draft_directory):
    def run(*options):
        shape = ("--device", "cpu", "--max-new-tokens", 10, "--samples", 16, "--sample-tokens", 3)
        return pard2("verify", "-t", target_directory, "-d", draft_directory, *shape, *options)

    return run


def change(monkeypatch, edit):
    """Makes the engine deliver edited token ids."""
    generate = Engine.generate

    def edited(self, prompts, params=None, raw=False):
        prompts = list(prompts)
        for completion in generate(self, prompts, params, raw):
            yield dataclasses.replace(completion, token_ids=edit(list(completion.token_ids), len(prompts)))

    monkeypatch.setattr(Engine, "generate", edited)


def wrong_fifth(tokens, prompts):
    return [*tokens[:4], (tokens[4] + 1) % 256, *tokens[5:]]


def test_says_lossless_in_one_line_and_what_was_checked(verify):
    result = verify()
    assert result.code == 0
    line = result.out.splitlines()[-1]
    assert line.startswith("lossless: 8 of 8 prompts alone, 8 of 8 prompts together: tokens equal to transformers' greedy generate; ")
    assert "384 sampled tokens fit the target's distribution (p = " in line and line.endswith("(pard2-td, float32)")


def test_tells_what_it_costs_before_it_starts(verify):
    error = verify("--samples", 0, "--batch-size", 1).err
    assert "up to 80 tokens and 80 by transformers" in error and "Sampling" not in error
    error = verify("--dtype", "bfloat16", "--near-tie", 2.0).err
    assert "up to 160 tokens and as many read once more" in error and "384 tokens, decoded and read once more" in error


def test_a_wrong_token_fails_with_exit_code_1(verify, monkeypatch):
    change(monkeypatch, wrong_fifth)
    result = verify("-m", "pard2-ti", "--samples", 0)
    assert result.code == 1 and "NOT lossless: 0 of 8 prompts alone, 0 of 8 prompts together" in result.out and "token 4" in result.out
    assert "sampling not tested" in result.out and "pard2-ti" in result.out


def test_a_fault_in_company_alone_is_found(verify, monkeypatch):
    change(monkeypatch, lambda tokens, prompts: tokens if prompts == 1 else tokens[:-1])
    result = verify("--samples", 0)
    assert result.code == 1 and "NOT lossless: 8 of 8 prompts alone, 0 of 8 prompts together" in result.out


def test_false_sampling_fails_with_exit_code_1_though_greedy_is_right(verify, monkeypatch):
    """The same number for every position is as wrong as can be."""
    monkeypatch.setattr(randomness, "_uniform", lambda seed, index, position, purpose, block: 0.5)
    result = verify("--json")
    answer = json.loads(result.out)
    assert result.code == 1 and not answer["lossless"] and not answer["sampling"]["lossless"]
    assert all(prompt["lossless"] for prompt in answer["prompts"])
    assert "tokens do NOT fit the target's distribution" in verify().out


def test_json_holds_all_of_it(verify, tmp_path):
    file = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "old answer"}]
    file.write_text(json.dumps({"id": "a", "messages": messages}) + "\n")
    result = verify("--prompts", file, "--json", "--dtype", "bfloat16", "--near-tie", 2.0, "--draft-sampling", "sampled", "--verification", "block")
    answer = json.loads(result.out)
    assert result.code == 0 and answer["lossless"] and answer["near_tie"] == 2.0 and answer["method"] == "pard2-td"
    (one,) = answer["prompts"]  # there is no company to decode a single prompt in
    assert one["lossless"] and not one["together"] and one["new_tokens"] == 10 and one["prompt_tokens"] < 40
    sampling = answer["sampling"]
    assert sampling["lossless"] and (sampling["completions"], sampling["tokens"]) == (16, 48)
    assert (sampling["draft_sampling"], sampling["verification"], sampling["false_alarm"]) == ("sampled", "block", 1e-4)
    assert json.loads(verify("--prompts", file, "--json", "--samples", 0).out)["sampling"] is None


def test_bad_input(verify, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"id": "a", "messages": [{"role": "system", "content": "x"}]}\n')
    assert "record a has no user message" in verify("--prompts", file).error
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "x" * CONTEXT}]}) + "\n")
    assert "shorten the prompt" in verify("--prompts", file).error
    assert "--draft-tokens 7" in verify("--draft-tokens", 7).error
    assert "--samples 3 are too few" in verify("--samples", 3).error
    assert "--temperature 0 is greedy" in verify("--temperature", 0).error
    assert "--temperature -1" in verify("--temperature", -1).error
    assert "--verification block" in verify("--verification", "block").error
