"""The published implementation's own decoding of a tiny pair, reproduced: tokens and proposals."""

import json
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from pard2 import Engine, SamplingParams
from pard2.engine.draft_selection import DraftSelector
from pard2.engine.drafters.base import DraftRequest
from pard2.engine.drafters.parallel import ParallelDrafter
from pard2.engine.sequence import Sequence

PAIR = Path(__file__).parent.parent / "golden" / "pair_llama_s21"
GOLDEN = json.loads((PAIR / "decode.json").read_text())


@pytest.fixture(scope="module", params=["td", "ti"])
def golden(request):
    engine = Engine.from_pretrained(str(PAIR / "target"), str(PAIR / "draft"), f"pard2-{request.param}", "float32", "cpu", GOLDEN["K"])
    return engine, [case for case in GOLDEN["cases"] if case["mode"] == request.param]


def test_tokens_equal(golden):
    engine, cases = golden
    for case in cases:
        new = case["tokens"][len(case["prompt"]) :]
        assert engine.generate([case["prompt"]], SamplingParams(max_tokens=len(new)))[0].token_ids == new


def propose(engine: Engine, context: list[int], k: int) -> list[int]:
    """Our proposals after `context`, drafter and target started afresh."""
    target, draft = engine.target, engine.draft
    drafter = ParallelDrafter(draft, engine.method == "pard2-td", target.vocab_size, 64)
    reading = drafter.open(64)
    with torch.inference_mode():
        features = target.forward(torch.tensor([context]), num_logits=0, layers=drafter.feature_layers).features
        if features is not None:
            features = torch.cat([torch.zeros_like(features[0, :1]), features[0, :-1]])
        drafter.update(reading, context, features)
        sequence = Sequence(prompt=context, params=SamplingParams(), seed=0, index=0, max_new_tokens=k, stop_token_ids=frozenset(), text=None)
        selector = DraftSelector([sequence], "greedy", "token", engine.target.vocab_size)
        return drafter.propose([DraftRequest(reading, k)], selector).proposals[0].token_ids.tolist()


def test_proposals_equal_at_every_context(golden):
    """From the second cycle on: in its first, the reference proposes before the
    target has emitted a token."""
    engine, cases = golden
    compared = 0
    for case in cases:
        lengths = accumulate((accepted + 1 for accepted in case["accepted"]), initial=len(case["prompt"]))
        for cycle, (length, proposals) in enumerate(zip(lengths, case["proposals"], strict=False)):
            if cycle > 0 and length <= len(case["tokens"]):
                assert propose(engine, case["tokens"][:length], GOLDEN["K"]) == proposals, (case["prompt"], cycle)
                compared += 1
    assert compared > 80


def test_running_engine_accepts_what_the_reference_accepts(golden):
    """Proposals made on the run, from caches and features of earlier cycles, equal those made afresh."""
    engine, cases = golden
    compared = 0
    for case in cases:
        prompt, tokens = case["prompt"], case["tokens"]
        lengths = accumulate((accepted + 1 for accepted in case["accepted"]), initial=len(prompt))
        reference = dict(zip(lengths, case["accepted"], strict=False))
        length = len(prompt)
        for step in engine.stream(prompt, SamplingParams(max_tokens=len(tokens) - len(prompt))):
            if length > len(prompt) and length in reference and step.proposed == GOLDEN["K"] and length + reference[length] < len(tokens):
                assert step.accepted == reference[length], (prompt, length)
                compared += 1
            length += len(step.token_ids)
    assert compared > 50
