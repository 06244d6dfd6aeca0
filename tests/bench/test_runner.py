"""Runs on tiny models: every configuration, every chunk, the same text."""

import dataclasses

import pytest
from bench_plans import chat_target, plan, suite
from rich.console import Console

from chat_tokenizer import MASK_ID
from pard2.bench.plan import Chunk, configurations
from pard2.bench.progress import TimeLeft
from pard2.bench.result_file import ResultFile
from pard2.bench.runner import Runner, run
from pard2.errors import Pard2Error
from tiny import tiny_draft
from tiny_eagle3 import tiny_eagle3


@pytest.fixture(scope="module")
def pair():
    target = chat_target()
    return target, {None: tiny_draft(target, [0, 2], draft_tokens=6, projection=0.05, mask_token=MASK_ID)}


def quiet() -> Console:
    return Console(quiet=True)


def test_methods_say_different_texts_or_chunks_are_left_out(pair):
    methods = ("vsd", "pard", "pard2-ti", "pard2-td")
    work = plan(suite(prompts=2), suite("other", 1), methods=methods, sizes=(1, 2), heats=(0.0, 1.0), new_tokens=6, repeats=2)
    file = ResultFile(None, work)
    run(Runner(work, *pair), file, quiet())
    results = file.results
    assert len(results) == 2 * len(work.configurations) == 2 * 2 * 2 * 5
    for result in results:
        prompts = 2 if result["suite"] == "gsm8k" else 1
        assert result["prompts"] == result["equal_outputs"] == prompts, result
        assert result["tokens"] == prompts * 6 * 2  # ignore_eos
        assert result["tokens_per_second"] > 0 and result["other_seconds"] >= 0
        parts = result["draft_seconds"] + result["verify_seconds"] + result["other_seconds"]
        assert result["tokens"] - prompts * 2 == pytest.approx(result["tokens_per_second"] * parts, rel=1e-3)


def test_batch_size_two_decodes_one_by_one(pair):
    work = plan(suite(prompts=8), methods=(), sizes=(1, 2), new_tokens=9)
    file = ResultFile(None, work)
    run(Runner(work, *pair), file, quiet())
    alone, together = file.results
    assert (alone["cycles"], together["cycles"]) == (8 * 8, 4 * 8)


def test_resumed_run_measures_twice_or_leaves_gaps(pair, tmp_path):
    work = plan(suite(prompts=3), methods=("pard2-td",), new_tokens=6)
    runner = Runner(work, *pair)
    file = ResultFile(tmp_path / "r.json", work)
    measured = []

    def stop_after_one(chunk, announce):
        if measured:
            raise KeyboardInterrupt
        measured.append(chunk)
        return Runner.measure(runner, chunk, announce)

    runner.measure = stop_after_one
    with pytest.raises(KeyboardInterrupt):
        run(runner, file, quiet())
    again = ResultFile(tmp_path / "r.json", work)
    assert again.done == {measured[0]}
    run(Runner(work, *pair), again, quiet())
    assert [m.chunk.first for m in again.measurements if m.configuration.method == "ar"] == [0, 1, 2]


def test_plan_that_is_done_runs_again(pair, tmp_path):
    work = plan(suite(prompts=2), methods=(), new_tokens=4)
    run(Runner(work, *pair), ResultFile(tmp_path / "r.json", work), quiet())
    runner = Runner(work, *pair)
    runner.warm_up = runner.measure = None  # type: ignore[assignment]
    run(runner, ResultFile(tmp_path / "r.json", work), quiet())


def test_same_configuration_always_comes_first(pair):
    work = plan(suite(prompts=4), methods=("pard2-td",), new_tokens=3)
    runner, first = Runner(work, *pair), []
    for chunk in work.chunks():
        order = []
        runner.measure(chunk, lambda one, order=order: order.append(one.method))
        first.append(order[0])
    assert first == ["ar", "pard2-td", "ar", "pard2-td"]


def test_prompt_that_does_not_fit_is_not_named(pair):
    long = suite(prompts=2)
    long.prompts[1][0]["content"] = "x" * 300
    with pytest.raises(Pard2Error, match="`suites`: record gsm8k-1: the prompt has"):
        Runner(plan(long), *pair)


def test_caches_larger_than_the_memory_are_tried(pair, monkeypatch):
    monkeypatch.setattr("pard2.bench.runner.free_bytes", lambda device: 1000)
    with pytest.raises(Pard2Error, match="caches of 3 configurations.*`max_batch`"):
        Runner(plan(), *pair)


def test_failed_answers_are_measured(pair):
    target = chat_target(seed=3)
    target.model.lm_head.weight.data.fill_(float("nan"))
    runner = Runner(plan(methods=()), target, {})
    with pytest.raises(Pard2Error, match="`method` ar failed: .*NaN"):
        runner.measure(Chunk("gsm8k", 0, 1, 0, 2), lambda one: None)


def test_each_method_gets_the_tree_that_is_for_it(pair):
    target, drafts = pair
    eagle = tiny_eagle3(target)
    work = dataclasses.replace(
        plan(suite(prompts=1)),
        configurations=configurations({None: ["vsd", "pard2-td"], "eagle": ["eagle3"]}, [1], [3], [0.0], [0, 5]),
        tree_top_k=2,
    )
    runner = Runner(work, target, {**drafts, "eagle": eagle})
    asked = [(one.method, engine.options.tree, engine.options.tree_top_k) for one, engine in runner._engines.items()]
    proposing = [("vsd", 0, None), ("pard2-td", 0, None), ("pard2-td", 5, None), ("eagle3", 0, None), ("eagle3", 5, 2)]
    assert asked == [("ar", 0, None), *proposing]
    measured = runner.measure(next(work.chunks()), lambda *_: None)
    assert [one.configuration.tree for one in measured] == [0, 0, 0, 5, 0, 5]
    assert all(one.peak_bytes >= runner._caches[one.configuration] for one in measured)


def test_time_left_forgets_that_batches_differ():
    chunks = [Chunk("s", 0, 1, 0, 1), Chunk("s", 0, 8, 0, 4), Chunk("s", 0, 1, 1, 1), Chunk("s", 0, 8, 4, 4), Chunk("s", 0, 2, 0, 1)]
    left = TimeLeft(chunks)
    assert left.estimate(0) is None
    left.observe(chunks[0], 3.0)
    left.observe(chunks[1], 4.0)
    assert left.estimate(2) == pytest.approx(3.0 + 4 * 1.0 + 7 / 5)
