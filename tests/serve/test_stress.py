"""A short form of benchmarks/serve_stress.py: clients at their worst leave nothing behind."""

import gc
import logging
import random

import serve_stress
from pard2 import Engine, SamplingParams
from running import new_draft, new_target, running, wait_until


def test_a_server_stays_up_and_right_among_clients_at_their_worst(plain, caplog):
    expected = serve_stress.expected_texts(
        lambda prompt, fields: plain.generate([prompt], SamplingParams(max_tokens=serve_stress.MOST_TOKENS, **fields))
    )
    target = new_target()
    with running(Engine(target, new_draft(target), max_batch=8)) as server:
        stress = serve_stress.Stress(server.port, expected)
        stress.run(range(80), clients=8)
        stress.end()
        assert not stress.wrong, stress.wrong
        assert {name.partition(":")[0] for name in stress.counts} >= {"leaves", "whole", "streamed", "malformed", "half", "deep"}
        wait_until(server.is_empty)
        assert not any(serve_stress.left(server.port).values())
    gc.collect()  # a task whose failure nobody took says so when it goes
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_malformed_bodies_are_of_many_kinds():
    bodies = {serve_stress.malformed(random.Random(seed)) for seed in range(500)}
    assert len(bodies) >= 200
