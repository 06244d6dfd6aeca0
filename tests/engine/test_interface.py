"""What a user of the library holds: an engine that says what it is, closes, and finds the embedded draft."""

import asyncio
from pathlib import Path

import pytest

import pard2
from engines import new_engine, shared_target
from pard2 import Engine, Pard2Error, SamplingParams
from pard2.engine import pair
from pard2.engine.methods import choose_draft
from tiny import random_prompts

PROMPTS = random_prompts(4, seed=3)


def test_an_engine_says_what_it_is():
    engine = new_engine("pard2-td")
    assert repr(engine) == f"<Engine '{engine.target.name}' with draft '{engine.draft.name}': pard2-td on cpu>"
    assert repr(new_engine("ar")) == f"<Engine '{engine.target.name}': ar on cpu>"
    assert engine.tokenizer is engine.target.tokenizer
    assert not hasattr(engine, "temperature")


def test_closing_cancels_and_lets_go_and_may_be_repeated():
    with new_engine("pard2-td", max_batch=2) as engine:
        stream, unbegun = engine.stream(PROMPTS[0]), engine.stream(PROMPTS[0])
        next(stream)
        requests = [engine.submit(prompt, SamplingParams(max_tokens=20)) for prompt in PROMPTS]
        engine.step()
    assert [request.completions()[0].finish_reason for request in requests] == ["cancelled"] * 4
    assert [step.finish_reason for step in stream][-1] == "cancelled"
    engine.close()
    assert repr(engine) == "<Engine, closed>" and "target" not in vars(engine)
    calls = (
        lambda: engine.generate([[1]]), lambda: engine.submit([1]), engine.step, lambda: engine.totals, lambda: engine.tokenizer,
        lambda: next(unbegun),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(Pard2Error, match=r"^the engine is closed; make another$"):
            call()


def test_closing_ends_a_task_that_streams():
    async def run():
        engine = new_engine("ar")
        steps = engine.astream(PROMPTS[0], SamplingParams(max_tokens=20))
        await anext(steps)
        engine.close()
        return [step.finish_reason async for step in steps]

    assert asyncio.run(run())[-1] == "cancelled"


def test_generate_returns_a_list_and_completions_come_one_by_one():
    engine = new_engine("pard2-td")
    said = engine.generate(PROMPTS, SamplingParams(max_tokens=4))
    assert isinstance(said, list) and said[0].token_ids == next(engine.completions(PROMPTS, SamplingParams(max_tokens=4))).token_ids


def test_the_embedded_draft_is_the_embedded_targets_default(monkeypatch):
    assert choose_draft("smollm2", None, None) == choose_draft("smollm2", None, "pard2-ti") == "smollm2"
    assert choose_draft("other", "smollm2", "pard2-ti") == "smollm2"
    assert choose_draft("smollm2", "mine", None) == "mine"
    assert choose_draft("smollm2", None, "ar") is None
    assert choose_draft("other", None, None) is None
    asked = []
    monkeypatch.setattr(pair, "load_target", lambda name, *_, **__: shared_target())
    monkeypatch.setattr(pair, "load_draft", lambda name, *_, **__: asked.append(name) or new_engine("pard2-td").draft)
    assert Engine.from_pretrained("smollm2").method == "pard2-td" and asked == ["smollm2"]
    assert Engine.from_pretrained("smollm2", method="ar").draft is None and asked == ["smollm2"]


def test_a_model_in_place_of_its_name_is_told_where_it_goes():
    with pytest.raises(Pard2Error, match=r"^`target` is the name of a model, a str, and not Target; a loaded one goes into Engine\(\.\.\.\)$"):
        Engine.from_pretrained(shared_target())
    with pytest.raises(Pard2Error, match="^`draft` is the name of a model"):
        Engine.from_pretrained("smollm2", draft=Path("x"))


def test_the_package_offers_its_names_and_its_types():
    assert dir(pard2) == sorted(pard2.__all__) and "Engine" in dir(pard2)
    assert (Path(pard2.__file__).parent / "py.typed").is_file()
