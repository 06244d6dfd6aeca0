"""`draft init` and `draft info`: what a checkpoint is, fits and lacks."""

import io
import json
import shutil

import huggingface_hub.constants
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from chat_tokenizer import MASK_ID, VOCABULARY
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft


@pytest.fixture
def init(pard2, target_directory):
    return lambda *options: pard2("draft", "init", "-t", target_directory, "--device", "cpu", *options)


def test_a_cut_draft_loads_and_says_what_it_is(init, pard2, target_directory, tmp_path):
    assert init("--layers", 2, "-o", tmp_path / "d", "--draft-tokens", 5, "--target-layers=-1,-3").code == 0
    target = load_target(str(target_directory), "float32", "cpu")
    draft = load_draft(str(tmp_path / "d"), target, torch.float32, target_dependent=True)
    assert draft.num_layers == 2
    report = json.loads(pard2("draft", "info", tmp_path / "d", "-t", target_directory, "--json").out)
    expected = {
        "layers": 2,
        "hidden_size": 32,
        "vocab_size": VOCABULARY,
        "parameters": sum(p.numel() for p in draft.parameters()),
        "methods": ["pard2-td", "pard2-ti"],
        "mask_token": MASK_ID,
        "draft_tokens": 5,
        "target_layers": [-1, -3],
        "target_dim": 64,
        "target_hidden_size": 32,
        "projection": [32, 64],
        "bias": False,
        "lacks": [],
        "fits": {"pard2-td": "yes", "pard2-ti": "yes"},
    }
    assert {key: report[key] for key in expected} == expected


def test_layers_by_number_and_mask_by_id(init, pard2, tmp_path):
    assert init("--layers", "0,2", "-o", tmp_path / "d", "--mask-token", 7).code == 0
    assert json.loads(pard2("draft", "info", tmp_path / "d", "--json").out)["mask_token"] == 7


def test_a_shared_vocabulary_is_left_out_and_not_reported_missing(init, pard2, tmp_path):
    assert init("--layers", 1, "-o", tmp_path / "d", "--share-vocabulary").code == 0
    stored = load_file(tmp_path / "d" / "model.safetensors")
    assert not [key for key in stored if "embed" in key or "lm_head" in key]
    report = json.loads(pard2("draft", "info", tmp_path / "d", "--json").out)
    assert report["shared_vocabulary"] and report["lacks"] == []


def test_an_existing_directory_is_not_lost(init, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.txt").write_text("years of work")
    assert "is not empty; name another directory with -o, or give --force" in init("--layers", 1, "-o", tmp_path / "d").error
    assert "holds no checkpoint, so --force will not replace it" in init("--layers", 1, "-o", tmp_path / "d", "--force").error
    assert (tmp_path / "d" / "thesis.txt").read_text() == "years of work"
    assert init("--layers", 1, "-o", tmp_path / "e").code == 0
    assert init("--layers", 1, "-o", tmp_path / "e").code == 2
    assert init("--layers", 2, "-o", tmp_path / "e", "--force").code == 0


def test_an_unwritable_output_is_found_before_the_target_is_loaded(pard2, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "d"):
        assert "cannot write" in pard2("draft", "init", "-t", "no/such-model", "--layers", 1, "-o", output).error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "9"], "--layers 9: the target has 3 layers"),
        (["--layers", "0"], "--layers 0"),
        (["--layers", "0,3"], "--layers: 3 is not a layer"),
        (["--layers", "2,0"], "--layers must rise"),
        (["--layers", "some"], "--layers 'some' is not a list of numbers"),
        (["--layers", "1", "--mask-token", str(VOCABULARY)], "--mask-token"),
        (["--layers", "1", "--target-layers", "a"], "--target-layers 'a' is not a list"),
    ],
)
def test_options_that_make_no_sense_name_themselves(init, tmp_path, options, message):
    assert message in init("-o", tmp_path / "d", *options).error
    assert not (tmp_path / "d").exists()


def test_info_reads_a_draft_of_the_hub(init, pard2, tmp_path, monkeypatch):
    hub = tmp_path / "models--someone--draft"  # as a download leaves it
    (hub / "refs").mkdir(parents=True)
    (hub / "refs/main").write_text("0" * 40)
    init("--layers", 2, "-o", hub / "snapshots" / ("0" * 40), "--draft-tokens", 5)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    report = json.loads(pard2("draft", "info", "someone/draft", "--json").out)
    assert report["layers"] == 2 and report["methods"][0] == "pard2-td"


def test_info_of_what_is_no_draft(pard2, lm_directory, tmp_path):
    assert "neither a directory nor a hub id" in pard2("draft", "info", tmp_path / "none").error
    assert "no model 'nobody/no-such-draft' in" in pard2("draft", "info", "nobody/no-such-draft").error
    (tmp_path / "empty").mkdir()
    assert "config.json is missing" in pard2("draft", "info", tmp_path / "empty").error
    report = json.loads(pard2("draft", "info", lm_directory, "--json").out)
    assert report["methods"] == ["vsd"] and report["mask_token"] is None


@pytest.fixture
def copy(draft_directory, tmp_path):
    shutil.copytree(draft_directory, tmp_path / "copy")
    return tmp_path / "copy"


def change_config(directory, **changes):
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def info(pard2, directory, *options):
    result = pard2("draft", "info", directory, "--json", *options)
    assert result.code == 0, result
    return json.loads(result.out)


def test_info_says_what_is_missing_and_what_still_works(pard2, copy):
    (copy / "warp_model.bin").unlink()
    report = info(pard2, copy)
    assert report["methods"] == ["pard2-ti"] and "has no projection" in report["lacks"][0] and report["projection"] is None


def test_info_misses_target_layers(pard2, copy):
    change_config(copy, pard2_target_layers=None)
    report = info(pard2, copy)
    assert report["methods"] == ["pard2-ti"] and "`pard2_target_layers`" in report["lacks"][0]


def test_info_misses_weights(pard2, copy):
    tensors = load_file(copy / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, copy / "model.safetensors")
    assert "model.norm.weight" in info(pard2, copy)["lacks"][0]


def test_info_of_a_corrupt_file(pard2, copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "is corrupt" in pard2("draft", "info", copy).error


def test_info_says_which_target_does_not_fit_and_why(pard2, copy, target_directory):
    change_config(copy, pard2_target_layers=[-1, -2, -3], pard2_target_dim=96)
    fits = info(pard2, copy, "-t", target_directory)["fits"]
    assert "expected [32, 96]" in fits["pard2-td"] and fits["pard2-ti"] == "yes"


def test_info_for_people_shows_every_field(pard2, copy):
    out = pard2("draft", "info", copy).out
    for part in ("LlamaForCausalLM, 2 layers", "pard2-td, pard2-ti", f"{MASK_ID}", "up to 6 tokens", "[32, 64], scale 0.02, no bias"):
        assert part in out


def test_info_says_what_other_engines_cannot_read(init, pard2, copy, tmp_path):
    assert init("--layers", 1, "-o", tmp_path / "d", "--share-vocabulary").code == 0
    assert "shared vocabulary: no other engine can read it" in pard2("draft", "info", tmp_path / "d").out
    change_config(copy, pard2_normalise_features=True)
    assert "normalised features: no other engine can read it" in pard2("draft", "info", copy).out
    change_config(copy, pard2_normalise_features=False)
    assert "no other engine" not in pard2("draft", "info", copy).out


@pytest.fixture
def tuned_directory(target_directory, tmp_path):
    """The target after a little more training: the same shape, other hidden states."""
    shutil.copytree(target_directory, tmp_path / "tuned")
    tensors = load_file(tmp_path / "tuned" / "model.safetensors")
    save_file({key: tensor * 1.05 for key, tensor in tensors.items()}, tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "tuned"


@pytest.mark.parametrize("command", ["generate", "verify", "bench", "chat", "info", "train"])
def test_a_draft_of_another_target_is_noted_in_one_line(pard2, target_directory, tuned_directory, draft_directory, tmp_path, monkeypatch, command):
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "tides"}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": "1", "messages": turns}) + "\n")
    run = {"draft": {"path": str(draft_directory)}, "data": {"train": [str(tmp_path / "data.jsonl")]}, "objective": {"draft_tokens": 6}}
    pair = lambda target: ("-t", target, "-d", draft_directory, "--device", "cpu")  # noqa: E731
    monkeypatch.setattr("sys.stdin", io.StringIO(""))

    def arguments(target):
        if command == "train":
            run["target"], run["loop"] = {"name": str(target)}, {"output": str(tmp_path / f"run-{target.name}"), "steps": 1, "device": "cpu"}
            (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
            return "train", tmp_path / "run.yaml"
        options = {
            "generate": ("-p", "hi", "--max-new-tokens", 2),
            "verify": ("--max-new-tokens", 2, "--samples", 0),
            "bench": ("-s", tmp_path / "data.jsonl", "--max-new-tokens", 2, "-m", "ar,pard2-td"),
            "chat": (),
        }
        return ("draft", "info", draft_directory, "-t", target) if command == "info" else (command, *pair(target), *options[command])

    def told(target):
        result = pard2(*arguments(target))
        assert result.code in (0, 3), result  # 3: verify, which too few accepted proposals tell nothing
        return [line for line in result.err.splitlines() if "was made for another target" in line]

    (line,) = told(tuned_directory)
    assert line.startswith("note: the draft ") and "('target', whose weights are not those of 'tuned')" in line
    assert told(target_directory) == []
    if command == "train":  # what was trained on belongs to the target that it was trained on with
        assert info(pard2, tmp_path / "run-tuned" / "draft")["target"] == "tuned"


@pytest.mark.parametrize("command", ["generate", "init", "info", "train", "dry run"])
def test_a_quantisation_that_nobody_here_can_read_is_one_line(init, pard2, target_directory, draft_directory, tmp_path, command):
    shutil.copytree(target_directory, tmp_path / "fp8")
    change_config(tmp_path / "fp8", quantization_config={"quant_method": "modelopt"})
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "tides"}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": "1", "messages": turns}) + "\n")
    run = {"draft": {"layers": 1}, "target": {"name": str(tmp_path / "fp8")}, "data": {"train": [str(tmp_path / "data.jsonl")]}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run | {"loop": {"output": str(tmp_path / "run"), "steps": 1, "device": "cpu"}}))
    arguments = {
        "generate": ("generate", "-t", tmp_path / "fp8", "-p", "hi"),
        "init": ("draft", "init", "-t", tmp_path / "fp8", "--layers", 1, "-o", tmp_path / "d"),
        "info": ("draft", "info", draft_directory, "-t", tmp_path / "fp8"),
        "train": ("train", tmp_path / "run.yaml"),
        "dry run": ("train", tmp_path / "run.yaml", "--dry-run"),
    }[command]
    assert "is quantised (modelopt) and cannot be read: transformers does not know this method" in pard2(*arguments).error
