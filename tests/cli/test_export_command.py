"""`draft info` of EAGLE-3 drafts and of where each kind can run, and `export` for other engines."""

import json
import shutil

import pytest
import torch
from eagle3_files import change_config, config_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from chat_tokenizer import MASK_ID, VOCABULARY, byte_tokenizer
from pard2.checkpoints.eagle3 import save_eagle3
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.models.target import Target
from tiny import pard_draft
from tiny_eagle3 import tiny_eagle3


@pytest.fixture(scope="module")
def target(target_directory) -> Target:
    return load_target(str(target_directory), "float32", "cpu")


@pytest.fixture
def eagle3(target, tmp_path):
    """Makes a draft's directory."""

    def make(name="d", layout="eagle3", **how):
        save_eagle3(tiny_eagle3(target, **how), tmp_path / name, layout=layout)
        return tmp_path / name

    return make


@pytest.fixture
def pard_directory(target, tmp_path):
    draft = pard_draft(target)
    draft.tokenizer, draft.spec = byte_tokenizer(), draft.spec.__class__(mask_token=MASK_ID, draft_tokens=6)
    save_draft(draft, tmp_path / "pard")
    return tmp_path / "pard"


def info(pard2, *arguments):
    result = pard2("draft", "info", *arguments, "--json")
    assert result.code == 0, result
    return json.loads(result.out)


def test_info_of_an_eagle3_draft(pard2, eagle3, target_directory):
    report = info(pard2, eagle3(feature_norm="each", norm_output=True), "-t", target_directory)
    expected = {
        "layout": "eagle3",
        "layers": 1,
        "hidden_size": 32,
        "vocab_size": VOCABULARY,
        "methods": ["eagle3"],
        "target_layers": [1, 3],
        "target_dim": 64,
        "target_hidden_size": 32,
        "vocabulary_size": 31,
        "draft_tokens": 5,
        "fc": [32, 64],
        "own_embedding": False,
        "mask_token": None,
        "projection": None,
        "dtype": "F32",
        "lacks": [],
        "fits": {"eagle3": "yes"},
    }
    assert {key: report[key] for key in expected} == expected
    assert "for each (fc_norm)" in report["norms"] and "Llama's, 4 heads over 2 of 8, MLP 64" in report["layer"]


def test_info_for_people_shows_every_field(pard2, eagle3):
    out = pard2("draft", "info", eagle3(layout="speculators", own_embedding=True, norm_before_residual=True)).out
    for line in (
        "layout          speculators'",
        "layer           Llama's, 4 heads over 2 of 8",
        "proposes        5 tokens deep as it was trained, one a pass, out of 31 of the vocabulary",
        "features        hidden states [1, 3], 64 wide: a target of hidden size 32",
        "fc              [32, 64]",
        "norms           none before fc; residual of the normalised feature; the next depth reads the state before the final norm",
        "embedding       its own",
        "runs in         vLLM: yes",
        "runs in         SGLang: no: it reads the plain layout alone",
    ):
        assert line in out, out


def test_info_says_what_does_not_fit_and_what_is_lacking(pard2, eagle3, target_directory):
    directory = eagle3()
    change_config(directory, eagle_aux_hidden_state_layer_ids=[1, 4])
    assert "reads hidden state 4, " in info(pard2, directory, "-t", target_directory)["fits"]["eagle3"]
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors | {"d2t": tensors["d2t"] + 1000}, directory / "model.safetensors")
    change_config(directory, eagle_aux_hidden_state_layer_ids=[1, 3])
    report = info(pard2, directory, "-t", target_directory)
    assert "`d2t` names token" in report["lacks"][0] and "`d2t` names token" in report["fits"]["eagle3"]
    assert report["runs_in"]["vLLM"] == "no: its files are broken or incomplete"
    change_config(directory, "norm_before_residual")
    assert "`norm_before_residual` in its config.json: false is assumed" in info(pard2, directory)["lacks"][0]
    change_config(directory, architectures=["EagleLlamaForCausalLM"])
    assert "is an EAGLE-1 draft" in pard2("draft", "info", directory).error


def runs_in(pard2, *arguments):
    return info(pard2, *arguments)["runs_in"]


def test_where_an_eagle3_draft_runs(pard2, eagle3):
    ready = eagle3()
    one_lower = {"eagle_aux_hidden_state_layer_ids": [0, 2], "use_aux_hidden_state": True, "norm_before_fc": False}
    assert runs_in(pard2, ready) == {
        "pard2": "yes",
        "vLLM": "yes",
        "SGLang": "yes",
        "transformers": "no: it is no language model of its own",
    }
    config = json.loads((ready / "config.json").read_text())
    assert config["eagle_config"] == one_lower and config["eagle_aux_hidden_state_layer_ids"] == [1, 3]
    change_config(ready, eagle_config=one_lower | {"eagle_aux_hidden_state_layer_ids": [1, 3]})
    assert runs_in(pard2, ready)["SGLang"] == "no: it counts `eagle_config`'s layer ids one lower: write [0, 2] there"
    change_config(ready, eagle_config=one_lower)
    change_config(ready, norm_before_residual=True)
    assert runs_in(pard2, ready)["SGLang"] == "no: its residual is always the feature as it is (norm_before_residual false)"
    assert runs_in(pard2, eagle3("e", config={"model_type": "qwen3", "head_dim": 8}))["vLLM"] == "yes"
    change_config(ready, architectures=["SomethingEagle3"])
    assert "`architectures` must be LlamaForCausalLMEagle3" in runs_in(pard2, ready)["vLLM"]
    assert "`fc` has no bias" in runs_in(pard2, eagle3("f", config={"bias": True}))["vLLM"]
    unsaid = eagle3("g", layout="speculators")
    change_config(unsaid, "norm_before_residual")
    assert runs_in(pard2, unsaid)["vLLM"] == "no: `norm_before_residual` is missing, which it takes for true; write false"


def test_where_the_other_kinds_run(pard2, draft_directory, lm_directory, pard_directory, target_directory, tmp_path):
    assert runs_in(pard2, lm_directory) == {
        "pard2": "yes",
        "vLLM": "yes: as a draft model",
        "SGLang": "yes: as a standalone draft",
        "transformers": "yes: assisted decoding",
    }
    pard = {"SGLang": "no: it does not read PARD", "transformers": "yes: assisted decoding, one token a pass", "pard2": "yes"}
    assert runs_in(pard2, pard_directory) == pard | {"vLLM": "yes: as PARD (parallel_drafting)"}
    assert runs_in(pard2, draft_directory) == pard | {"vLLM": "yes: as PARD, without the target's features (parallel_drafting)"}
    change_config(pard_directory, "spd_type")
    assert runs_in(pard2, pard_directory)["vLLM"] == "no: `spd_type` in its config.json is missing"
    assert pard2("draft", "init", "-t", target_directory, "--layers", 1, "-o", tmp_path / "s", "--share-vocabulary", "--device", "cpu").code == 0
    shared = runs_in(pard2, tmp_path / "s")
    assert shared["pard2"] == "yes" and all("embedding and head are the target's" in shared[one] for one in ("vLLM", "SGLang", "transformers"))
    tensors = load_file(pard_directory / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, pard_directory / "model.safetensors")
    assert runs_in(pard2, pard_directory)["vLLM"] == "no: weights are missing"


def test_convert_between_the_layouts_of_eagle3(pard2, eagle3, target_directory, tmp_path):
    start = eagle3(own_embedding=True, feature_norm="joint")
    assert pard2("export", start, "--to", "speculators", "-o", tmp_path / "b").code == 0
    assert pard2("export", tmp_path / "b", "--to", "sglang", "-o", tmp_path / "c").code == 0
    for file in ("config.json", "model.safetensors"):
        assert (start / file).read_bytes() == (tmp_path / "c" / file).read_bytes()
    assert pard2("export", start, "--to", "speculators", "-o", tmp_path / "b").code == 2
    result = pard2("export", start, "--to", "speculators", "-o", tmp_path / "b", "--force", "-t", target_directory)
    assert result.code == 0 and config_of(tmp_path / "b")["speculators_config"]["verifier"]["name_or_path"] == "target"


def test_a_draft_that_names_no_layers_is_converted_with_its_target(pard2, tmp_path):
    from test_eagle3_checkpoints import by_hand

    from tiny import tiny_model

    tiny_model(layers=8).save_pretrained(tmp_path / "t")
    by_hand(tmp_path / "d")
    convert = ("export", tmp_path / "d", "--to", "speculators", "-o", tmp_path / "s")
    assert "does not say which hidden states it reads, but for the default ones of its target; name that with -t" in pard2(*convert).error
    assert not (tmp_path / "s").exists()
    assert pard2(*convert, "-t", tmp_path / "t").code == 0
    assert config_of(tmp_path / "s")["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5]


@pytest.mark.parametrize("shared", [True, False])
def test_a_pard2_draft_lacks_what_an_engine_reads(pard2, draft_directory, target_directory, tmp_path, shared):
    """Embedding, head, tokenizer and `pard_token` are there, and its projection beside them, as released."""
    source, out = draft_directory, tmp_path / "p"
    if shared:
        source = tmp_path / "s"
        assert pard2("draft", "init", "-t", target_directory, "--layers", 2, "-o", source, "--share-vocabulary", "--device", "cpu").code == 0
    assert "name it with -t" in pard2("export", source, "--to", "vllm", "-o", out).error
    assert not out.exists()
    result = pard2("export", source, "--to", "vllm", "-o", out, "-t", target_directory)
    assert result.code == 0 and "(TI)" in result.err
    config = config_of(out)
    assert config["spd_type"] == "pard2" and config["pard_token"] == config_of(source)["pard_token"]
    assert config["pard2_target_layers"] == config_of(source)["pard2_target_layers"] and (out / "warp_model.bin").exists()
    assert "pard2_shared_vocabulary" not in config and (out / "tokenizer.json").exists()
    report = info(pard2, out, "-t", target_directory)
    assert report["lacks"] == [] and report["fits"] == {"pard2-td": "yes", "pard2-ti": "yes"} and report["runs_in"]["vLLM"].startswith("yes: as PARD")
    # Whoever loads it as an ordinary model finds what the draft computes, and pard2 the whole of it.
    target = load_target(str(target_directory), "float32", "cpu", "plain")
    before, after = (load_draft(str(place), target, torch.float32, weight_format="plain") for place in (source, out))
    alone = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, MASK_ID, MASK_ID]])
    torch.testing.assert_close(alone(ids).logits, before.lm(ids).logits)
    assert torch.equal(before.projection.weight, after.projection.weight)


def test_the_command_is_not_that_of_the_draft(pard2, draft_directory, lm_directory, pard_directory, eagle3, target_directory, tmp_path):
    def said(draft, to="vllm"):
        result = pard2("export", draft, "--to", to, "-o", tmp_path / "o", "-t", target_directory, "--json")
        assert result.code == 0, result
        shutil.rmtree(tmp_path / "o")
        return json.loads(result.out)["commands"]

    parallel = {"method": "draft_model", "model": str(tmp_path / "o"), "num_speculative_tokens": 6, "parallel_drafting": True}
    assert f"--speculative-config '{json.dumps(parallel)}'" in said(pard_directory)[0] and said(pard_directory)[0].startswith(
        "VLLM_USE_V2_MODEL_RUNNER=0 "
    )
    dependent = parallel | {"method": "eagle3"}
    assert [json.loads(line.split("'")[1])["method"] for line in said(draft_directory)[::2]] == ["eagle3", "draft_model"]
    assert said(draft_directory)[3] == f"LLM(model={str(target_directory)!r}, speculative_config={parallel!r})"
    assert json.loads(said(draft_directory)[0].split("'")[1]) == dependent
    assert "parallel_drafting" not in said(lm_directory)[0] and '"num_speculative_tokens": 5' in said(lm_directory)[0]
    assert '"method": "eagle3"' in said(eagle3())[0] and "--speculative-algorithm EAGLE3" in said(tmp_path / "d", "sglang")[0]
    assert said(pard_directory, "tensorrt-llm")[0].endswith(
        f"PARDDecodingConfig(max_draft_len=6, speculative_model={str(tmp_path / 'o')!r}, mask_token_id={MASK_ID}))"
    )
    assert (
        "Eagle3DecodingConfig(" in said(tmp_path / "d", "tensorrt-llm")[0] and "DraftTargetDecodingConfig(" in said(lm_directory, "tensorrt-llm")[0]
    )
    assert said(tmp_path / "d", "speculators")[0] == f"vllm serve {tmp_path / 'o'}"


def test_a_stray_mask_token_wins_or_the_draft_is_shorter_than_its_target(pard2, pard_directory, target_directory, tmp_path):
    longest = config_of(target_directory)["max_position_embeddings"]
    change_config(pard_directory, mask_token_id=3, max_position_embeddings=64)
    result = pard2("export", pard_directory, "--to", "vllm", "-o", tmp_path / "p", "-t", target_directory)
    assert result.code == 0, result
    config = config_of(tmp_path / "p")
    assert "mask_token_id" not in config and config["pard_token"] == MASK_ID
    assert config["max_position_embeddings"] == longest and "was raised from 64" in result.err and "`mask_token_id` was taken out" in result.err


@pytest.mark.parametrize(
    ("source", "to", "line"),
    [
        ("pard", "speculators", "is a PARD draft, which speculators does not read; use --to vllm"),
        ("pard", "sglang", "is a PARD draft, which sglang does not read; use --to vllm"),
        ("lm", "speculators", "is an ordinary language model, which speculators does not read"),
        ("eagle3", "gguf", "--to 'gguf' is not one of vllm, sglang, tensorrt-llm, speculators, hf"),
        ("nowhere", "vllm", "neither a directory nor a hub id"),
        ("broken", "speculators", "lacks `fc.weight`"),
        ("other", "speculators", "reads hidden states 16 wide"),
        ("pard", "vllm --check --python /nowhere/python", "name an interpreter that has vLLM"),
        ("eagle3", "sglang --check", "--check runs vLLM, and --to is sglang"),
        ("eagle3", "vllm --python x", "--python is for --check"),
        ("eagle3", "vllm --push a/b", "--push uploads what --to hf writes"),
        ("eagle3", "hf --private", "--private is for --push"),
    ],
)
def test_what_cannot_be_exported_leaves_something(pard2, eagle3, pard_directory, lm_directory, target_directory, tmp_path, source, to, line):
    places = {"eagle3": eagle3(), "pard": pard_directory, "lm": lm_directory, "nowhere": tmp_path / "nowhere", "broken": eagle3("b")}
    tensors = load_file(places["broken"] / "model.safetensors")
    tensors.pop("fc.weight")
    save_file(tensors, places["broken"] / "model.safetensors")
    places["other"] = shutil.copytree(places["eagle3"], tmp_path / "other")
    change_config(places["other"], target_hidden_size=16)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert line in pard2("export", places[source], "--to", *to.split(), "-o", tmp_path / "new", "-t", target_directory).error
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_eagle3_draft_is_replaced_and_foreign_files_are_not(pard2, eagle3, tmp_path):
    start, old = eagle3(), eagle3("old")
    assert pard2("export", start, "--to", "sglang", "-o", old, "--force").code == 0
    (old / "thesis.txt").write_text("years of work")
    assert "--force will not replace it" in pard2("export", start, "--to", "sglang", "-o", old, "--force").error
    assert "is the input itself" in pard2("export", start, "--to", "sglang", "-o", start, "--force").error
