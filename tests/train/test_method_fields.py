"""What a run's `method` means to its fields: defaults of its own, and one line for what does not fit it."""

from pathlib import Path

import pytest
import run_files
from run_files import write_run

from pard2.config import TrainConfig
from pard2.config_file import load_config
from pard2.config_methods import METHODS
from pard2.train.run_checkpoint import _difference

CUT = {"eagle3": ["draft.layers=null"]}  # takes the cut out of the run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path)


def refused(path: Path, *overrides: str) -> str:
    return run_files.refused(path, *overrides).removeprefix(f"{path}: ")


def test_the_schema_and_the_table_know_the_same_methods():
    assert list(METHODS) == list(TrainConfig.model_fields["method"].annotation.__args__)
    for method in METHODS.values():
        for section, field in [*method.unfit, *((s, f) for s, fields in method.defaults.items() for f in fields)]:
            assert field in TrainConfig.model_fields[section].annotation.model_fields, f"{section}.{field}"


def test_defaults_of_a_method_are_the_published_ones(run):
    pard = load_config(run, ["method=pard"])
    objective = pard.objective
    assert (objective.draft_tokens, objective.retention, objective.min_retention) == (8, 0.7, 0.2)
    assert (objective.weighting, objective.ce_alpha, objective.kd_alpha) == ("none", 1.0, 0.0) and not pard.asks_target
    ordinary = load_config(run, ["method=ar"])
    assert ordinary.objective.draft_tokens == 1 and ordinary.objective.kd_alpha == 1.0 and ordinary.asks_target
    eagle3 = load_config(run, ["method=eagle3", "draft.layers=null"])
    objective = eagle3.objective
    assert (objective.draft_tokens, objective.depth_decay, objective.retention, objective.min_retention) == (7, 0.8, 1.0, 1.0)
    assert (objective.ce_alpha, objective.kd_alpha, objective.weighting) == (0.0, 1.0, "none") and eagle3.asks_target
    assert load_config(run).method == "pard2"


def test_what_is_given_wins_over_the_methods_default(run):
    objective = load_config(run, ["method=pard", "objective.draft_tokens=12", "objective.kd_alpha=0.5"]).objective
    assert (objective.draft_tokens, objective.kd_alpha, objective.ce_alpha) == (12, 0.5, 1.0)


@pytest.mark.parametrize(("name", "section", "field"), [(name, *field) for name, method in METHODS.items() for field in method.unfit])
def test_a_field_that_does_not_fit_is_passed_over(run, name, section, field):
    said = refused(run, f"method={name}", *CUT.get(name, ()), f"{section}.{field}=1")
    assert said == f"{section}.{field} does not fit method={name}, which {METHODS[name].unfit[section, field]}; leave it out"


def test_a_method_that_there_is_none_of(run):
    assert refused(run, "method=eagle").startswith("method: Input should be 'pard2', 'pard'")


@pytest.mark.parametrize(
    ("override", "asked"), [("kd_alpha=0.1", True), ("weighting=cat", True), ("tf_eal_alpha=1", True), ("weighting=d-pace", False)]
)
def test_states_that_nobody_would_read_are_not_cached(run, override, asked):
    options = ["method=pard", f"objective.{override}"]
    assert load_config(run, options).asks_target == asked
    if asked:
        assert load_config(run, [*options, "features.cache=states"]).features.cache
    else:
        assert "features.cache does not fit method=pard with this objective" in refused(run, *options, "features.cache=states")


@pytest.mark.parametrize("method", METHODS)
def test_a_resolved_run_is_the_same_run(run, method):
    """Without the fields that do not fit: a dry run shows none of them."""
    config = load_config(run, [f"method={method}", *CUT.get(method, ()), "objective.ce_alpha=0.1"])
    document = config.model_dump(mode="json")
    assert TrainConfig.model_validate(document) == config
    assert not any(field in document[section] for section, field in METHODS[method].unfit)
    assert ("scale" in document["draft"]) == (method == "pard2")


def test_another_method_is_another_run(run):
    one, other = load_config(run), load_config(run, ["method=ar"])
    assert _difference(one, other) == {"method": ("pard2", "ar")}
