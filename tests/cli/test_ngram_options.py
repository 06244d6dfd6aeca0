"""Copying on the command line: without a draft, before one, and what is refused."""

import json

import pytest


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "eval_small.jsonl"
    texts = ("abcabcabcabc", "hi hi hi hi hi")
    file.write_text("".join(json.dumps({"id": text, "messages": [{"role": "user", "content": text}]}) + "\n" for text in texts))
    return file


@pytest.fixture
def generate(pard2, target_directory):
    common = ("generate", "-t", target_directory, "--dtype", "float32", "--device", "cpu", "-p", "abcabcabcabc", "--ignore-eos", "--json")
    return lambda *options: pard2(*common, "--max-new-tokens", 24, *options)


@pytest.fixture
def bench(pard2, target_directory, prompts):
    common = ("bench", "-t", target_directory, "-s", prompts, "--dtype", "float32", "--device", "cpu", "--max-new-tokens", 12)
    return lambda *options: pard2(*common, *options)


def test_an_answer_without_a_draft_or_after_a_match_is_that_of_plain_decoding(generate, draft_directory):
    plain, alone, before = (
        json.loads(generate(*options).out)
        for options in (("-m", "ar"), ("-m", "ngram", "--ngram-min", 1), ("-d", draft_directory, "--ngram-first", 2, "--ngram-min", 1))
    )
    assert plain["token_ids"] == alone["token_ids"] == before["token_ids"]
    assert (alone["method"], before["method"]) == ("ngram", "pard2-td") and alone["stats"]["proposed"] > 0


def test_a_bench_of_ngram_needs_no_draft_and_runs_once_beside_several(bench, draft_directory, lm_directory, tmp_path):
    result = bench("-m", "ngram", "--ngram-min", 1, "--json", tmp_path / "alone.json")
    held = json.loads((tmp_path / "alone.json").read_text())
    assert result.code == 0 and [one["method"] for one in held["results"]] == ["ar", "ngram"]
    assert held["plan"]["draft"] is None and held["plan"]["ngrams"]["ngram_min"] == 1 and held["results"][1]["equal_outputs"] == 2
    several = ("-d", f"one={draft_directory}", "-d", f"two={draft_directory}", "-m", "ngram,pard2-td", "--ngram-first", 4)
    assert bench(*several, "--json", tmp_path / "several.json").code == 0
    results = json.loads((tmp_path / "several.json").read_text())["results"]
    assert [(one["method"], one["draft"]) for one in results] == [("ar", None), ("ngram", None), ("pard2-td", "one"), ("pard2-td", "two")]
    assert all(one["equal_outputs"] == 2 for one in results)


def test_verify_counts_what_was_copied(pard2, target_directory, tmp_path):
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps({"messages": [{"role": "user", "content": f"{word} " * 8}]}) + "\n" for word in ("ab", "xyz", "hello")))
    options = ("--prompts", file, "--device", "cpu", "--max-new-tokens", 60, "--samples", 20, "--sample-tokens", 3, "--ngram-min", 1, "--json")
    result = pard2("verify", "-t", target_directory, "-m", "ngram", *options)
    held = json.loads(result.out)
    assert held["method"] == "ngram" and all(one["lossless"] and one["proposed"] > 0 for one in held["prompts"])
    assert result.code in (0, 3)


def test_bad_input_is_one_line_with_the_flag(generate, bench, draft_directory):
    assert generate("-m", "ngram", "--ngram-min", 0).error == "--ngram-min 0: give a number of tokens from 1 to 32"
    assert generate("-m", "ngram", "--ngram-max", 0).error == "--ngram-max 0: give a number of tokens from 1 to 32"
    assert generate("-d", draft_directory, "--ngram-first", 0).error == "--ngram-first 0: give a number of tokens from 1 to 32"
    assert generate("-m", "ngram", "--ngram-min", 5, "--ngram-max", 3).error == "--ngram-min 5 is above --ngram-max 3; give a smaller --ngram-min"
    refused = "has no draft that a match could come before; name one with -d, or use -m ngram without --ngram-first"
    assert generate("-m", "ar", "--ngram-first", 8).error == f"--ngram-first 8: -m ar {refused}"
    assert generate("--ngram-first", 8).error == f"--ngram-first 8: -m ar {refused}"
    assert "--ngram-first 8: ar, ngram has no draft" in bench("-m", "ar,ngram", "--ngram-first", 8).error
    assert "-m pard2-td needs a draft; name one with -d, or use -m ar or ngram" in generate("-m", "pard2-td").error
