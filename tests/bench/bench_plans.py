"""Plans and measurements for the tests of `bench`."""

from dataclasses import replace

from chat_tokenizer import VOCABULARY, byte_tokenizer
from pard2.bench.measurement import Answer, Measurement
from pard2.bench.plan import Chunk, Configuration, Plan, configurations
from pard2.bench.suites import Suite
from pard2.engine.statistics import Totals
from pard2.models.target import Target
from tiny import tiny_model

AR = Configuration(method="ar", batch_size=1, draft_tokens=0, temperature=0.0)
TD = replace(AR, method="pard2-td", draft_tokens=4)


def suite(name: str = "gsm8k", prompts: int = 4) -> Suite:
    ids = tuple(f"{name}-{i}" for i in range(prompts))
    return Suite(name, ids, tuple([{"role": "user", "content": "ask " * (1 + i % 3)}] for i in range(prompts)))


def plan(
    *suites: Suite,
    methods: tuple[str, ...] = ("pard2-ti", "pard2-td"),
    sizes: tuple[int, ...] = (1,),
    ks: tuple = ("auto",),
    heats: tuple[float, ...] = (0.0,),
    new_tokens: int = 10,
    repeats: int = 1,
    seed: int = 0,
) -> Plan:
    found = configurations(methods, sizes, ks, heats)
    return Plan(
        target="target",
        draft="draft",
        dtype="float32",
        device="cpu",
        suites=suites or (suite(),),
        configurations=found,
        max_new_tokens=new_tokens,
        ignore_eos=True,
        repeats=repeats,
        seed=seed,
    )


def measurement(one: Configuration, chunk: Chunk, tokens: int, seconds: float, answers: list[Answer]) -> Measurement:
    totals = Totals(cycles=tokens, tokens=tokens, prefill_seconds=0.5, decode_seconds=seconds, draft_seconds=seconds / 4, verify_seconds=seconds / 2)
    return Measurement(configuration=one, chunk=chunk, totals=totals, answers=tuple(answers), proposed_at=(), accepted_at=(), seconds=seconds)


def chat_target(seed: int = 0) -> Target:
    return Target(tiny_model(layers=3, vocab=VOCABULARY, seed=seed, initializer_range=0.2), byte_tokenizer(), "tiny")
