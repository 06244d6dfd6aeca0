"""The tables of the commands at 80 columns, of made-up results, against what they looked like before.

Looked at by a person; after a change that is meant, write the new text into the file and look again.
"""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from pard2.bench.table import results_csv, results_markdown, results_table
from pard2.checkpoints.inspection import DraftReport
from pard2.cli import demo, draft, env, verify
from pard2.cli.output import output_console
from pard2.engine.statistics import Stats
from pard2.models.draft_kind import DraftKind
from pard2.verify.greedy import PromptAudit

GOLDEN = Path(__file__).parent.parent / "golden" / "tables"
TITLE = "smollm2, draft smollm2, bfloat16 on cpu, up to 128 tokens"


@pytest.fixture(autouse=True)
def no_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


def result(suite, method, k="auto", batch=1, temperature=0.0, seed=1, **more):
    """Numbers of the size that a run gives."""
    base = method == "ar"
    speed = 1.0 if base else 1.2 + 0.137 * seed
    return {
        "suite": suite,
        **more,
        "method": method,
        "batch_size": batch,
        "draft_tokens": 0 if base else k,
        "tree": 0,
        "temperature": temperature,
        "prompts": 20,
        "answers": 20,
        "tokens": 2481,
        "tokens_per_second": 98.7654 * speed,
        "speedup": speed,
        "speedup_interval": [speed, speed] if base else [speed - 0.08, speed + 0.09],
        "speedup_median": speed,
        "acceptance_length": 1.0 if base else 1.4 + 0.3 * seed,
        "acceptance_length_interval": [1.0, 1.0] if base else [1.3 + 0.3 * seed, 1.5 + 0.3 * seed],
        "accepted_by_position": [] if base else [0.71, 0.48],
        "draft_seconds": 0.0 if base else 2.1,
        "verify_seconds": 14.4,
        "other_seconds": 0.3,
        "other_share": 0.0178,
        "prefill_seconds": 1.2,
        "peak_bytes": 48_000_000,
        "cycles": 1042,
        "chunks": 20,
        "equal_outputs": 20,
    }


def runs(suites=("gsm8k",), batches=(1,), ks=("auto",), temperatures=(0.0,)):
    return [
        result(suite, method, k, batch, temperature, seed)
        for suite in suites
        for batch in batches
        for temperature in temperatures
        for seed, (method, k) in enumerate((("ar", 0), *(("pard2-ti", k) for k in ks), *(("pard2-td", k) for k in ks)))
    ]


def two_drafts():
    ours = [("ar", None), *((method, name) for name in ("old", "new-longer-name") for method in ("pard2-ti", "pard2-td"))]
    return [result("gsm8k", method, seed=seed, draft=name) for seed, (method, name) in enumerate(ours)]


def audits():
    values = {"prompt_tokens": 41, "new_tokens": 64, "proposed": 321, "judged": 88, "accepted": 37, "acceptance_length": 2.31}
    ties = ((0, 0.0, None), (2, 0.1875, None), (1, 0.75, 17))
    return [
        PromptAudit(together=together, near_ties=near, largest_gap=gap, first_difference=first, **values)
        for together in (False, True)
        for near, gap, first in ties
    ]


def demo_runs():
    def run(method, seconds, accepted):
        stats = Stats(decode_seconds=seconds, accepted_per_cycle=accepted, proposed_per_cycle=(3,) * len(accepted))
        return demo.Run(method, list(range(10)), [], stats)

    return [[run("ar", 1.0, (0,) * 9), run("pard2-ti", 0.7, (2, 3, 1)), run("pard2-td", 0.5, (3, 3))]] * 4


def report():
    return DraftReport(
        name="smollm2-draft",
        architecture="llama",
        layers=4,
        hidden_size=576,
        vocab_size=49152,
        parameters=31_000_000,
        dtype="bfloat16",
        kind=DraftKind.PROJECTED,
        mask_token=16,
        mask_text="<reponame>",
        draft_tokens=8,
        target_layers=[-1, -8],
        target_dim=1152,
        target_hidden_size=576,
        scale=0.2,
        bias=False,
        projection=[576, 1152],
        target="smollm2",
    )


def show_env():
    hardware = {"cpu": "Some Processor 9000", "cores": 2, "threads": 4, "features": ["avx2", "avx512f"], "gpu": None}
    about = {"versions": {"pard2": "1.0", "torch": "2.13.0"}, "hardware": hardware, "cache": "/home/user/.cache/pard2"}
    times = {"bf16": [4.21, 5.5, 7.25, 19.0], "panels": [3.96, 4.01, 9.5, 31.75]}
    env._print(about, times, {"1": {"target": "panels", "draft": "panels"}, "16": {"target": "bf16", "draft": "bf16"}}, (1, 6, 24, 96))


def bench_table(results, title=TITLE):
    out = output_console()
    out.print(results_table(results, out.width, title))


SHOWN = {
    "bench": lambda: bench_table(runs()),
    "bench_suites": lambda: bench_table(runs(("gsm8k", "humaneval", "own-mathematics", "mt_bench"))),
    "bench_everything": lambda: bench_table(runs(("gsm8k", "mt_bench"), (1, 16), ("auto", 8), (0.0, 0.7))),
    "bench_drafts": lambda: bench_table(two_drafts()),
    "bench_markdown": lambda: print(results_markdown(runs(("gsm8k", "mt_bench")), TITLE)),
    "verify": lambda: verify._print_table(audits(), True),
    "verify_alone": lambda: verify._print_table(audits()[:3], True),
    "verify_half": lambda: verify._print_table(audits(), False),
    "demo_speeds": lambda: demo._print_speeds(output_console(), demo_runs()[0]),
    "demo": lambda: demo._print_summary(output_console(), demo_runs()),
    "env": show_env,
    "draft_info": lambda: [print(f"{label:<16}{value}") for label, value in draft._lines(report(), ["pard2-td", "pard2-ti", "pard", "vsd"])],
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_table_looks_otherwise(name, capsys):
    SHOWN[name]()
    shown = capsys.readouterr().out
    assert shown == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", [name for name in SHOWN if name != "bench_markdown"])
def test_a_table_is_wider_than_80_or_cut(name, capsys, monkeypatch):
    SHOWN[name]()
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown
    if name.startswith("bench"):
        monkeypatch.setenv("COLUMNS", "40")
        SHOWN[name]()
        narrow = capsys.readouterr().out
        assert max(map(len, narrow.splitlines())) <= 40 and "…" not in narrow


def test_more_columns_where_there_is_room(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    bench_table(runs(("gsm8k", "humaneval")))
    shown = capsys.readouterr().out
    assert "draft + verify" in shown and "2.0 + 13.8 ms" in shown and "1.8%" in shown and shown.count("suite") == 1


def test_every_figure_of_every_result_is_in_the_csv():
    results = two_drafts()
    rows = list(csv.DictReader(io.StringIO(results_csv(results))))
    assert [(row["method"], row["draft"]) for row in rows] == [(one["method"], one["draft"] or "") for one in results]
    assert float(rows[1]["speedup_low"]) == results[1]["speedup_interval"][0] and rows[1]["accepted_by_position"] == "0.71 0.48"
    missing = {re.sub("_interval$", "_low", key) for key in results[0]} - set(rows[0])
    assert not missing


def test_a_result_without_intervals_is_printed():
    one = result("a|b", "pard2-td") | {"speedup_interval": None, "acceptance_length": None, "acceptance_length_interval": None, "other_share": None}
    assert "1.34x |" in results_markdown([one | {"speedup": 1.337}])
    assert json.dumps(results_csv([one]).splitlines()[1]).count(",") == results_csv([one]).splitlines()[0].count(",")
