"""`pard2 verify`: its verdict, its exit code, and what it refuses."""

import dataclasses
import json
import re

import pytest

from chat_tokenizer import MASK_ID
from conftest import CONTEXT
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.write import save_draft
from pard2.engine import randomness
from pard2.engine.draft_length.adaptive import AdaptiveDraftLength
from pard2.engine.engine import Engine
from tiny import tiny_draft


@pytest.fixture(scope="module")
def good_draft(target_directory, tmp_path_factory):
    """Of all the target's layers, so that about half of what it proposes stands."""
    directory = tmp_path_factory.mktemp("good") / "draft"
    target = load_target(str(target_directory), "float32", "cpu")
    save_draft(tiny_draft(target, [0, 1, 2], draft_tokens=6, projection=0.01, mask_token=MASK_ID), directory)
    return directory


@pytest.fixture
def verify(pard2, target_directory, good_draft):
    def run(*options):
        shape = ("--device", "cpu", "--max-new-tokens", 10, "--samples", 24, "--sample-tokens", 3, "--temperature", 0.6)
        return pard2("verify", "-t", target_directory, "-d", good_draft, *shape, *options)

    return run


@pytest.fixture
def one_prompt(tmp_path):
    file = tmp_path / "one.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "old answer"}]
    file.write_text(json.dumps({"id": "a", "messages": messages}) + "\n")
    return file


def change(monkeypatch, edit):
    """Makes the engine deliver edited token ids."""
    completions = Engine.completions

    def edited(self, prompts, params=None, raw=False):
        prompts = list(prompts)
        for completion in completions(self, prompts, params, raw):
            yield dataclasses.replace(completion, token_ids=edit(list(completion.token_ids), len(prompts)))

    monkeypatch.setattr(Engine, "completions", edited)


def wrong_fifth(tokens, prompts):
    return [*tokens[:4], (tokens[4] + 1) % 256, *tokens[5:]]


def test_says_lossless_in_one_line_and_what_was_checked(verify):
    result = verify()
    assert result.code == 0 and "\\n" not in result.err
    line = result.out.splitlines()[-1]
    assert line.startswith("lossless: 8 of 8 prompts alone, 8 of 8 prompts together: tokens equal to transformers' greedy generate; ")
    assert "576 sampled tokens fit the target's distribution (p = " in line and line.endswith("(pard2-td, float32)")
    proposed, judged, accepted = map(int, re.search(r"(\d+) tokens were proposed, (\d+) judged, (\d+) accepted", line).groups())
    assert proposed > judged > accepted >= 60


def test_tells_what_it_costs_before_it_starts(verify):
    error = verify("--samples", 0, "--batch-size", 1).err
    assert "up to 80 tokens and 80 by transformers" in error and "Sampling" not in error
    error = verify("--dtype", "bfloat16", "--near-tie", 2.0).err
    assert "up to 160 tokens and as many read once more" in error and "576 tokens, decoded and read once more" in error


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


def test_json_holds_all_of_it(verify, one_prompt):
    rules = ("--draft-sampling", "sampled", "--verification", "block", "--max-new-tokens", 60, "--samples", 40)
    result = verify("--prompts", one_prompt, "--json", "--dtype", "bfloat16", "--near-tie", 2.0, *rules)
    answer = json.loads(result.out)
    assert result.code == 0 and answer["lossless"] and answer["near_tie"] == 2.0 and answer["method"] == "pard2-td"
    assert answer["tested"] == {"alone": True, "together": False, "sampling": True} and answer["draft_tokens"] == 6
    (one,) = answer["prompts"]  # there is no company to decode a single prompt in
    assert one["lossless"] and not one["together"] and one["new_tokens"] == 60 and one["prompt_tokens"] < 40
    assert 20 <= one["accepted"] < one["judged"] < one["proposed"]
    sampling = answer["sampling"]
    assert sampling["lossless"] and (sampling["completions"], sampling["tokens"]) == (40, 120)
    assert 20 <= sampling["accepted"] < sampling["judged"] <= sampling["proposed"] <= 40 * 2
    assert sampling["prefixes_freedom"] > 0
    assert (sampling["draft_sampling"], sampling["verification"], sampling["false_alarm"]) == ("sampled", "block", 1e-4)
    assert json.loads(verify("--prompts", one_prompt, "--json", "--samples", 0).out)["sampling"] is None


TOO_LITTLE = {
    "a handful of proposals": (("--max-new-tokens", 3, "--samples", 0), ["alone"], "alone: only . proposals were accepted, 20 are needed"),
    "none, by auto": (("--draft-tokens", "auto", "--max-new-tokens", 60, "--samples", 0), ["alone"], "alone: only 0 proposals"),
    "few in sampling": (("--max-new-tokens", 60), ["sampling"], "sampling: only .* --samples or --sample-tokens"),
    "nothing drawn but the certain": (("--max-new-tokens", 60, "--temperature", 0.00002), ["sampling"], "sampling: too few completions share"),
    "plain decoding, nothing drawn but the certain": (("-m", "ar", "--temperature", 0.00002), ["sampling"], "sampling: too few completions share"),
}


@pytest.mark.parametrize("case", TOO_LITTLE)
def test_nothing_is_called_lossless_of_which_too_little_was_seen(verify, one_prompt, case, monkeypatch):
    options, parts, says = TOO_LITTLE[case]
    monkeypatch.setattr(AdaptiveDraftLength, "choose", lambda self, acceptances, limits, backlog: [0] * len(limits))  # as where passes are slow
    result = verify("--prompts", one_prompt, *options, "--json")
    answer = json.loads(result.out)
    assert result.code == 3 and answer["lossless"] is False and all(one["lossless"] for one in answer["prompts"])
    assert [part for part in parts if answer["tested"][part]] == []
    assert answer["sampling"] is None or not answer["sampling"]["lossless"]
    result = verify("--prompts", one_prompt, *options)
    line = result.out.splitlines()[-1]
    assert result.code == 3 and line.startswith("too little to tell, though nothing is wrong so far (") and re.search(says, line)


def test_a_fault_is_a_fault_however_little_was_seen(verify, one_prompt, monkeypatch):
    change(monkeypatch, lambda tokens, prompts: [tokens[0] + 1, *tokens[1:]])
    result = verify("--prompts", one_prompt, "--max-new-tokens", 3, "--samples", 0)
    assert result.code == 1 and "NOT lossless" in result.out


def test_plain_decoding_has_nothing_to_be_judged_and_says_so(verify):
    result = verify("-m", "ar")
    assert result.code == 0 and result.out.splitlines()[-1].startswith("lossless: 8 of 8 prompts alone")
    assert "nothing was proposed, ar is plain decoding" in result.out
    assert json.loads(verify("-m", "ar", "--json").out)["tested"] == {"alone": True, "together": True, "sampling": True}


def test_all_that_the_draft_can_propose_is_proposed_by_default(verify, target_directory, lm_directory, pard2):
    answer = json.loads(verify("--json", "--samples", 0).out)
    assert answer["draft_tokens"] == 6 and all(one["proposed"] >= 6 for one in answer["prompts"])
    result = pard2("verify", "-t", target_directory, "-d", lm_directory, "--device", "cpu", "--json", "--samples", 0, "--max-new-tokens", 12)
    answer = json.loads(result.out)
    assert answer["draft_tokens"] == 8 and all(one["proposed"] >= 8 for one in answer["prompts"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_table_fits_a_terminal_of_80_columns_and_no_word_is_cut(verify, dtype, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = verify("--samples", 0, "--dtype", dtype, "--near-tie", 5.0).out.splitlines()
    table = lines[: next(n for n, line in enumerate(lines) if "lossless" in line)]
    assert len(table) >= 18 and max(map(len, table)) <= 80 and "…" not in "".join(table)
    for word in (
        "decoded",
        "prompt",
        "proposed",
        "accepted",
        "tokens/",
        "cycle",
        "differs",
        *(("near-", "ties", "gap") if dtype == "bfloat16" else ()),
    ):
        assert word in "\n".join(table[:4])
    assert sum(" together " in line and " none" in line for line in table) == 8


def test_bad_input(verify, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"id": "a", "messages": [{"role": "system", "content": "x"}]}\n')
    assert "record a has no user message" in verify("--prompts", file).error
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "x" * CONTEXT}]}) + "\n")
    assert "shorten the prompt" in verify("--prompts", file).error
    assert "--draft-tokens 7" in verify("--draft-tokens", 7).error
    assert "--samples 3 are too few" in verify("--samples", 3).error
    assert "--samples 19 are too few" in verify("--samples", 19).error
    assert "--temperature 0 is greedy" in verify("--temperature", 0).error
    assert "--temperature -1" in verify("--temperature", -1).error
    assert "--verification block" in verify("--verification", "block").error
