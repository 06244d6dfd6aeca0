"""A mistake in a run's file is one line that says where and what instead."""

from pathlib import Path

import pytest
import yaml
from run_files import RUN, refused, write_run

from pard2.config import OptimizerConfig, TrainConfig
from pard2.config_file import load_config, sections


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path)


def test_defaults_are_the_published_ones(run):
    config = load_config(run)
    objective = config.objective
    assert (objective.draft_tokens, objective.retention, objective.min_retention) == (16, 0.7, 0.1)
    assert (objective.ce_alpha, objective.kd_alpha, objective.feature_drop, config.draft.scale) == (0.1, 1.0, 0.1, 0.02)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.learning_rat=1", "unknown key optimizer.learning_rat; known are kind, lr"),
        ("loop.stepz=1", "unknown key loop.stepz; did you mean steps?"),
        ("optimiser.lr=1", "unknown key optimiser; did you mean optimizer?"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(run, override, said):
    assert said in refused(run, override)


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("loop.steps=many", "loop.steps"),
        ("loop.steps=0", "loop.steps"),
        ("loop.steps=1.5", "loop.steps"),
        ("objective.retention=1.5", "objective.retention"),
        ("objective.draft_tokens=0", "objective.draft_tokens"),
        ("target.dtype=float8", "target.dtype"),
        ("data.train=[]", "data.train"),
        ("optimizer.lr=.nan", "optimizer.lr"),
        ("draft.layers=four", "draft.layers"),
    ],
)
def test_a_mistyped_value_names_its_field(run, override, where):
    assert f"{run}: {where}" in refused(run, override)


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("optimizer.betas=[2, 2]", "optimizer.betas.0: Input should be less than 1"),
        ("optimizer.betas=[-1, 0]", "optimizer.betas.0: Input should be greater than or equal to 0"),
        ("optimizer.betas=[0.9, .nan]", "optimizer.betas.1: Input should be a finite number"),
        ("optimizer.betas=[0.9]", "optimizer.betas.1: Field required"),
        ("optimizer.lr=.inf", "optimizer.lr: Input should be a finite number"),
        ("optimizer.lr=inf", "optimizer.lr: Input should be a finite number"),
        ("optimizer.lr=true", "optimizer.lr: Input should be a valid number"),
        ("optimizer.lr=fast", "optimizer.lr: could not convert string to float"),
        ("optimizer.eps=0", "optimizer.eps: Input should be greater than 0"),
        ("optimizer.momentum=1", "optimizer.momentum: Input should be less than 1"),
        ("optimizer.clip=-1", "optimizer.clip: Input should be greater than or equal to 0"),
        ("optimizer.clip=.inf", "optimizer.clip: Input should be a finite number"),
        ("optimizer.weight_decay=.inf", "optimizer.weight_decay: Input should be a finite number"),
        ("optimizer.warmup_ratio=1.5", "optimizer.warmup_ratio: Input should be less than or equal to 1"),
        ("draft.scale=.inf", "draft.scale: Input should be a finite number"),
        ("objective.kd_alpha=.inf", "objective.kd_alpha: Input should be a finite number"),
        ("objective.ce_alpha=.nan", "objective.ce_alpha: Input should be a finite number"),
        ("objective.tf_eal_alpha=.inf", "objective.tf_eal_alpha: Input should be a finite number"),
        ("objective.draft_tokens=true", "objective.draft_tokens: Input should be a valid integer"),
        ("objective.draft_tokens=10000000000", "objective.draft_tokens: Input should be less than or equal to 256"),
        ("loop.steps=yes", "loop.steps: Input should be a valid integer"),
        ("loop.seed=1.0", "loop.seed: Input should be a valid integer"),
        ("loop.output=''", "loop.output: String should have at least 1 character"),
        ("loop.output=5", "loop.output: Input should be a valid string"),
        ("loop.device=''", "loop.device: String should have at least 1 character"),
        ("features.cache=''", "features.cache: String should have at least 1 character"),
        ("target.name=''", "target.name: String should have at least 1 character"),
        ("data.train=['']", "data.train.0: String should have at least 1 character"),
        ("data.evaluation=''", "data.evaluation: String should have at least 1 character"),
        ("log.tensorboard=1", "log.tensorboard: Input should be a valid boolean"),
        ("draft.layers=true", "draft.layers"),
    ],
)
def test_a_value_that_can_only_be_a_mistake_is_taken(run, override, where):
    assert f"{run}: {where}" in refused(run, override)


@pytest.mark.parametrize("override", ["loop.output=2020-99-99", f"loop.steps={'9' * 5000}", f"loop.output={'[' * 100_000}"])
def test_a_value_that_the_yaml_reader_breaks_on_is_a_traceback(run, override):
    assert refused(run, override).endswith("the value is not YAML")


def test_whole_numbers_are_numbers_and_a_null_switches_off(run):
    config = load_config(run, ["optimizer.lr=1", "optimizer.betas=[0, 0.5]", "optimizer.clip=null", "draft.scale=2"])
    assert (config.optimizer.lr, config.optimizer.betas, config.optimizer.clip, config.draft.scale) == (1.0, (0.0, 0.5), None, 2.0)


def test_a_warm_up_longer_than_the_run_or_said_twice(run):
    assert refused(run, "optimizer.warmup_steps=11") == "optimizer.warmup_steps=11 is more than the 10 steps of the run; lower it"
    assert "give either optimizer.warmup_steps or optimizer.warmup_ratio" in refused(run, "optimizer.warmup_steps=1", "optimizer.warmup_ratio=0.1")


@pytest.mark.parametrize(("said", "steps", "expected"), [({}, 2000, 20), ({}, 9, 9), ({"warmup_ratio": 0.03}, 2000, 60), ({"warmup_steps": 0}, 9, 0)])
def test_how_long_the_warm_up_is(said, steps, expected):
    """Left to its default, it is no longer than a short run."""
    assert OptimizerConfig(**said).warmup(steps) == expected


def test_a_revision_is_part_of_the_targets_name_once(run):
    for name in ("org/name", "org/name@v1"):
        assert load_config(run, [f"target.name={name}", "target.revision=v1"]).target.name == "org/name@v1"
    config = load_config(run, ["target.name=org/name", "target.revision=v1"])
    assert TrainConfig.model_validate(config.model_dump()).target.name == "org/name@v1"


def test_a_missing_field_is_named(run):
    run.write_text(yaml.safe_dump({key: value for key, value in RUN.items() if key != "loop"}))
    assert "loop: Field required" in refused(run)


@pytest.mark.parametrize("draft", [{}, {"layers": 4, "path": "x"}])
def test_a_draft_has_exactly_one_origin(run, draft):
    run.write_text(yaml.safe_dump(RUN | {"draft": draft}))
    assert refused(run).endswith(": give either draft.layers or draft.path")


def test_what_a_cache_holds_more_goes_with_a_cache(run):
    assert refused(run, "features.layers=[1]").endswith("features.layers is of a cache; give features.cache, too")


def test_a_part_of_the_vocabulary_goes_with_a_shared_one(run):
    assert refused(run, "draft.vocabulary_size=100").endswith("draft: draft.vocabulary_size goes with draft.share_vocabulary=true")


def test_muon_wants_whole_matrices(run):
    run.write_text(yaml.safe_dump(RUN | {"optimizer": {"kind": "muon"}}))
    assert "optimizer.kind=muon needs whole matrices" in refused(run, "loop.sharding=fsdp")


@pytest.mark.parametrize("override", ["steps=3", "loop.steps", "loop", ""])
def test_an_override_that_is_no_assignment(run, override):
    assert refused(run, override) == f"override {override!r} is not of the form section.field=value"


def test_an_override_whose_value_is_no_yaml(run):
    assert refused(run, "loop.steps=[1") == "override 'loop.steps=[1': the value is not YAML"


def test_overrides_are_yaml_and_the_last_one_wins(run):
    config = load_config(run, ["draft.layers=[0, 5]", "optimizer.lr=1e-3", "loop.steps=3", "loop.steps=4", "data.evaluation=a=b.jsonl"])
    assert config.draft.layers == [0, 5] and config.loop.steps == 4 and config.data.evaluation == "a=b.jsonl"
    assert config.optimizer.lr == 1e-3  # YAML 1.1 reads 1e-3 as text


def test_a_section_written_without_fields_can_be_filled(run):
    run.write_text(yaml.safe_dump(RUN) + "optimizer:\n")
    assert load_config(run, ["optimizer.lr=0.5"]).optimizer.lr == 0.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- a\n- b\n", "must be a mapping of sections (target, draft, data, features, objective, optimizer, loop, log)"),
        (b"", "must be a mapping of sections"),
        (b"a: [1\n", "is not YAML"),
        (b"\xff\xfe\xfa", "cannot read"),
    ],
)
def test_a_file_that_is_no_run(run, content, said):
    run.write_bytes(content)
    assert said in refused(run)


def test_a_file_that_is_not_there(tmp_path):
    assert refused(tmp_path / "none.yaml") == f"cannot read {tmp_path / 'none.yaml'}: No such file or directory"


def test_every_field_that_needs_words_has_them():
    """`pard2 train --dry-run` and the documentation show the schema; a bare field says nothing."""
    known = {"loop.seed", "optimizer.weight_decay"}
    for name in sections():
        for field, info in TrainConfig.model_fields[name].annotation.model_fields.items():
            assert info.description or f"{name}.{field}" in known, f"{name}.{field}"
