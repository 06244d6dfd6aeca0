"""Runs of each method: they learn, leave the draft that the method decodes with, and go on after a kill."""

import json
from pathlib import Path

import pytest
import torch
from train_runs import CONVERSATIONS, assert_bit_for_bit, interrupt, newest, save_target, write_records

from pard2 import Engine, SamplingParams
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.errors import Pard2Error
from pard2.models.draft_kind import DraftKind
from pard2.train import loop as training
from pard2.train.dry_run import dry_run
from pard2.train.initial import initial_draft
from pard2.train.loop import train
from tiny import greedy, pard_draft, tiny_draft
from tiny_eagle3 import tiny_eagle3

SHARED = {"share_vocabulary": True}
RUNS = {
    "pard": ("pard", {}, {}),
    "pard with KL": ("pard", {}, {"kd_alpha": 1.0, "weighting": "cat"}),
    "pard, shared": ("pard", SHARED | {"vocabulary_size": 40}, {}),
    "ar": ("ar", {}, {}),
    "ar, shared": ("ar", SHARED, {}),
    "ar, plain": ("ar", {}, {"kd_alpha": 0.0}),
    "eagle3": ("eagle3", {}, {}),
    "eagle3, a part": (
        "eagle3",
        {"vocabulary_size": 40, "norm_before_residual": True, "norm_output": True, "feature_norm": "each"},
        {"retention": 0.6, "min_retention": 0.2, "weighting": "cat", "ce_alpha": 0.1, "anchors": "all"},
    ),
}
DECODES = {"pard": "pard", "ar": "vsd", "eagle3": "eagle3"}
every_run = pytest.mark.parametrize(("method", "draft", "objective"), RUNS.values(), ids=RUNS)


def metrics(config) -> list[dict]:
    return [json.loads(line) for line in (Path(config.loop.output) / "metrics.jsonl").read_text().splitlines()]


def refused(config, quiet) -> str:
    with pytest.raises(Pard2Error) as caught:
        train(config, quiet)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@every_run
def test_a_run_learns_and_its_draft_decodes_what_the_target_says(make_config, quiet, tmp_path, monkeypatch, method, draft, objective):
    held_out = write_records(tmp_path / "held-out.jsonl", CONVERSATIONS[:2])
    config = make_config(
        method,
        draft=draft,
        objective=objective,
        data={"evaluation": str(held_out)},
        loop={"steps": 12, "evaluate_every": 6, "evaluation_tokens": 4},
    )
    if not config.asks_target:
        monkeypatch.setattr(training, "online_states", lambda *_: pytest.fail("a pass of the target that nobody needs"))
    directory = train(config, quiet)
    lines = metrics(config)
    assert lines[-1]["loss"] < (0.8 if config.kind.cut else 0.9) * lines[0]["loss"]  # a new layer begins with nothing
    assert {"kl", "overlap_by_depth"} <= lines[0].keys() if config.asks_target else not {"kl", "overlap_by_depth"} & lines[0].keys()
    decodes = DECODES[method]
    assert [[one["method"] for one in line["evaluation"]] for line in lines if "evaluation" in line] == [[decodes], [decodes]]
    assert "large TD" not in (Path(config.loop.output) / "curve.svg").read_text()

    target = load_target(config.target.name, "float32", "cpu")
    loaded = load_draft(str(directory), target, torch.float32)
    assert loaded.kind is {"pard": DraftKind.MASKED, "ar": DraftKind.LM, "eagle3": DraftKind.EAGLE3}[method]
    engine = Engine(target, loaded, decodes, 4)
    prompts = [[5, 6, 7], [40, 41, 42, 43, 44], [90]]
    for prompt, completion in zip(prompts, engine.generate(prompts, SamplingParams(max_tokens=24)), strict=True):
        assert completion.token_ids == [*greedy(target, prompt, 24)][: len(completion.token_ids)]


def test_the_directory_of_a_pard_draft_is_the_published_layout(make_config, quiet):
    """A causal LM whose config names the mask; no file beside it."""
    directory = train(make_config("pard", loop={"steps": 1}), quiet)
    config = json.loads((directory / "config.json").read_text())
    assert (config["spd_type"], config["pard2"], config["pard2_draft_tokens"]) == ("pard", False, 4)
    assert isinstance(config["pard_token"], int) and "pard2_target_layers" not in config
    assert not list(directory.glob("warp_model*")) and (directory / "model.safetensors").is_file()


@pytest.mark.parametrize("draft", [{}, SHARED])
def test_the_directory_of_an_ordinary_draft_is_an_ordinary_lm(make_config, quiet, draft):
    from transformers import AutoModelForCausalLM

    config = make_config("ar", draft=draft, loop={"steps": 2})
    directory = train(config, quiet)
    assert not any(key.startswith(("pard", "spd")) for key in json.loads((directory / "config.json").read_text()))
    lm = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    target = load_target(config.target.name, "float32", "cpu")
    table = target.model.get_input_embeddings().weight
    assert lm.get_input_embeddings().weight.equal(table.bfloat16().float()) == bool(draft)  # frozen, or trained


@every_run
def test_a_killed_run_ends_with_the_same_weights(make_config, quiet, tmp_path, monkeypatch, method, draft, objective):
    whole, killed = (make_config(method, draft=draft, objective=objective, loop={"output": str(tmp_path / name)}) for name in ("whole", "killed"))
    train(whole, quiet)
    with monkeypatch.context() as patch:
        interrupt(patch, 3, RuntimeError)
        with pytest.raises(RuntimeError, match="killed"):
            train(killed, quiet)
    train(killed, quiet)
    assert_bit_for_bit(whole.loop.output, killed.loop.output)


def test_a_run_is_resumed_from_its_directory_with_its_own_objective(make_config, quiet, monkeypatch):
    """A value that is the schema's default is not the method's."""
    from pard2.train.run_checkpoint import resumed_config

    config = make_config("pard", objective={"min_retention": 0.1}, loop={"steps": 2})
    train(config, quiet)
    resumed = resumed_config(Path(config.loop.output), [])
    assert resumed.objective == config.objective and resumed.method == "pard"


@every_run
def test_a_run_is_planned(make_config, method, draft, objective):
    config = make_config(method, draft=draft, objective=objective)
    plan = dry_run(config)
    assert plan.method == method and bool(plan.target_layers) == (plan.parameters.projection > 0) == (method == "eagle3")
    assert (plan.mask_token is None, plan.draft_tokens) == {"pard": (False, 4), "ar": (True, 1), "eagle3": (True, 4)}[method]
    assert (plan.work.target > 0) == (plan.memory.target_pass > 0) == config.asks_target
    assert plan.data.slots > plan.data.tokens / plan.data.rows or method == "ar"


def test_a_cache_of_features_serves_a_run_without_features(make_config, quiet, tmp_path):
    """What pard2 wrote is read again; what is missing is its own, with the last state alone."""
    shared, own = str(tmp_path / "shared"), str(tmp_path / "own")
    train(make_config(features={"cache": shared}, loop={"steps": 4, "output": str(tmp_path / "first")}), quiet)
    outputs = []
    for name, features in (("a", {"cache": shared, "on_missing": "raise"}), ("b", {"cache": own})):
        config = make_config("ar", features=features, loop={"output": str(tmp_path / name)})
        train(config, quiet)
        outputs.append(config.loop.output)
    assert_bit_for_bit(*outputs)
    sizes = [sum(file.stat().st_size for file in Path(directory).glob("states-*.safetensors")) for directory in (shared, own)]
    assert sizes[1] < 0.7 * sizes[0]


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "start", "must"),
    [
        ("pard2", "pard", "a PARD-2 draft or an ordinary LM; make one with `pard2 draft init`"),
        ("pard", "pard2", "a PARD draft or an ordinary LM"),
        ("ar", "pard", "an ordinary LM"),
        ("eagle3", "pard", "an EAGLE-3 draft"),
        ("pard2", "eagle3", "a PARD-2 draft or an ordinary LM; make one with `pard2 draft init`"),
    ],
)
def test_a_start_of_another_kind(make_config, quiet, tmp_path, target_directory, method, start, must):
    target = load_target(str(target_directory), "float32", "cpu")
    makers = {
        "pard2": lambda: tiny_draft(target, [0, 2], 4, mask_token=258),
        "pard": lambda: pard_draft(target),
        "eagle3": lambda: tiny_eagle3(target),
    }
    save_draft(makers[start](), tmp_path / "draft")
    config = make_config(method, draft={"layers": None, "path": str(tmp_path / "draft")})
    assert refused(config, quiet).startswith(f"draft.path {str(tmp_path / 'draft')!r} must be {must} (method={method})")
    with pytest.raises(Pard2Error, match="must be"):
        dry_run(config)
    assert not Path(config.loop.output).exists() or not any(Path(config.loop.output).glob("checkpoints/*"))


@pytest.mark.parametrize("method", ["pard", "ar"])
def test_a_run_starts_from_a_small_lm(make_config, quiet, tmp_path, method):
    save_target(tmp_path / "sibling", hidden=16)
    directory = train(make_config(method, draft={"layers": None, "path": str(tmp_path / "sibling")}, loop={"steps": 2}), quiet)
    assert json.loads((directory / "config.json").read_text())["hidden_size"] == 16


@pytest.mark.parametrize("method", ["pard", "ar", "eagle3"])
def test_a_run_goes_on_from_the_draft_of_another(make_config, quiet, tmp_path, method):
    first = train(make_config(method, loop={"steps": 2}), quiet)
    more = {} if method == "ar" else {"draft_tokens": 10}
    config = make_config(method, draft={"layers": None, "path": str(first)}, objective=more, loop={"steps": 2, "output": str(tmp_path / "second")})
    train(config, quiet)
    assert len(metrics(config)[-1]["accuracy_by_depth"]) == (1 if method == "ar" else 10)


def test_a_vocabulary_of_its_own_cannot_be_the_targets(make_config, quiet, tmp_path, target_directory):
    save_target(tmp_path / "sibling")
    config = make_config("ar", draft={"layers": None, "path": str(tmp_path / "sibling")} | SHARED)
    assert refused(config, quiet).endswith("has a vocabulary of its own; set draft.share_vocabulary=false")


def test_a_frozen_table_is_not_in_the_optimizer(make_config, quiet):
    config = make_config("ar", draft=SHARED, loop={"steps": 2})
    train(config, quiet)
    state = torch.load(newest(config.loop.output) / "state.pt", weights_only=True)
    assert not any("embed_tokens" in name or "lm_head" in name for name in state["optimizer"])


def test_another_method_into_the_same_directory(make_config, quiet):
    train(make_config("pard", loop={"steps": 2}), quiet)
    assert "holds a run with another method (pard, not ar)" in refused(make_config("ar", loop={"steps": 2}), quiet)


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        ({"target_layers": None}, "a target of 3 layers is too small for EAGLE-3's default features, which are hidden states 2, 1 and 0"),
        ({"target_layers": [1, 2, 4]}, "feature layer 4 does not exist in"),
        ({"vocabulary_size": 10**6}, "draft.vocabulary_size=1000000: the target has"),
        ({"path": "here", "norm_output": True}, "draft.path 'here' has draft.norm_output = False"),
        ({"path": "here", "vocabulary_size": 12}, "draft.path 'here' has draft.vocabulary_size = 31"),
        ({"path": "here", "target_layers": [2]}, "draft.path 'here' has draft.target_layers = [1, 3]"),
    ],
)
def test_an_eagle3_draft_that_cannot_be(make_config, quiet, tmp_path, monkeypatch, target_directory, draft, said):
    monkeypatch.chdir(tmp_path)
    save_draft(tiny_eagle3(load_target(str(target_directory), "float32", "cpu")), tmp_path / "here")
    config = make_config("eagle3", draft={"target_layers": None} | draft)
    assert refused(config, quiet).startswith(said)
    with pytest.raises(Pard2Error, match="feature|draft"):
        dry_run(config)


def test_a_new_eagle3_draft_begins_at_random_in_float32(make_config, target_directory):
    target = load_target(str(target_directory), "bfloat16", "cpu", weight_format="plain")
    draft = initial_draft(make_config("eagle3", draft={"target_layers": [1, 2, 3], "vocabulary_size": 40}), target)
    for name, parameter in draft.named_parameters():
        assert parameter.dtype == torch.float32 and parameter.requires_grad
        assert parameter.eq(1).all() if parameter.ndim == 1 else 0.018 < float(parameter.detach().std()) < 0.022, name
