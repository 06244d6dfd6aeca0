"""What is timed as the engine's own must be a full batch that decodes, without a model in it."""

import pytest
import torch

import host_time
from host_time import DECODERS, METHODS, Load, fit, limit, measure, new_engine


def load(method, batch, decoders=DECODERS[0], cycles=3):
    return Load(new_engine(method, batch, "full", torch.device("cpu"), cycles), batch, decoders == DECODERS[0], cycles)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_runs_in_the_timed_part(method):
    one = load(method, 2)
    real = [model.decoder for model in (one.engine.target, one.engine.draft) if model is not None]
    with one.decoding():
        for decoder in real:
            decoder.run = None  # whoever runs it fails
        before = one.engine.totals
        for _ in range(one.cycles):
            one.step()
        done = one.engine.totals - before
        for decoder in real:
            del decoder.run
    assert done.cycles == one.cycles and done.tokens >= 2 * one.cycles
    assert (done.tokens > 2 * one.cycles) == (method != "ar")  # something is proposed, and some of it stands
    assert one.engine.idle and one.engine.target.decoder is real[0]


@pytest.mark.parametrize("decoders", DECODERS)
def test_a_batch_that_ended_is_timed(decoders, monkeypatch):
    monkeypatch.setattr(host_time, "answer_tokens", lambda batch, cycles: 12)
    with pytest.raises(SystemExit, match="of a smaller one"):
        load("ar", 2, decoders, 20).milliseconds()


def test_every_case_has_a_figure_and_its_limit():
    loads = {("ar", DECODERS[0], 2): load("ar", 2), ("pard", DECODERS[1], 1): load("pard", 1, DECODERS[1])}
    results = measure(loads, 1)
    assert [(one["method"], one["decoders"], one["batch_size"]) for one in results] == list(loads)
    assert all(one["milliseconds"] > 0 and one["limit_milliseconds"] == limit(one["batch_size"]) for one in results)
    assert limit(32) == pytest.approx(0.94)


def test_the_line_misses_its_points():
    line = fit([1, 8, 32, 128], [0.5 + 0.03 * batch for batch in (1, 8, 32, 128)])
    assert line == {"milliseconds_a_cycle": pytest.approx(0.5), "microseconds_a_sequence": pytest.approx(30)}
    assert fit([8], [1.0]) == {}
