"""Drafts on disk: the released layout to the letter, and every way in which one may not fit."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from chat_tokenizer import MASK_ID, VOCABULARY, byte_tokenizer
from pard2.checkpoints import write
from pard2.checkpoints.draft_spec import inexpressible, read_spec, spec_keys
from pard2.checkpoints.inspection import inspect_draft
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.pruning import FeatureOptions, cut_draft
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.errors import Pard2Error
from pard2.kernels.weight_format import weight_formats
from pard2.models.draft import Draft, DraftSpec
from pard2.models.draft_kind import DraftKind
from pard2.models.target import Target
from tiny import MASK, pard_draft, tiny_draft, tiny_lm_draft, tiny_model, tiny_target

GOLDEN = Path(__file__).parent.parent / "golden" / "pair_llama_s21"
IDS = torch.tensor([[5, 9, 2, 7, MASK, MASK]])
FEATURES = torch.linspace(-1, 1, 6 * 64).reshape(1, 6, 64)


@pytest.fixture
def target() -> Target:
    return tiny_target()


@pytest.fixture
def directory(target: Target, tmp_path: Path) -> Path:
    """A PARD-2 draft in the released layout."""
    save_draft(tiny_draft(target), tmp_path / "draft")
    return tmp_path / "draft"


def edit_config(directory: Path, remove: tuple[str, ...] = (), **changes: object) -> None:
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key not in remove}))


def read_projection(directory: Path) -> dict[str, Tensor]:
    return torch.load(directory / "warp_model.bin", weights_only=True)


def load(directory: Path, target: Target, target_dependent: bool | None = True) -> Draft:
    return load_draft(str(directory), target, torch.float32, target_dependent)


def refused(directory: Path, target: Target, target_dependent: bool | None = True) -> str:
    with pytest.raises(Pard2Error) as caught:
        load(directory, target, target_dependent)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(repr(str(directory)), "DRAFT").replace(str(directory), "DRAFT")


def assert_same_function(one: Draft, other: Draft, features: Tensor | None = FEATURES) -> None:
    torch.testing.assert_close(one(IDS, features), other(IDS, features), rtol=0, atol=0)


# --- round trips ----------------------------------------------------------------------------------


def test_what_is_saved_is_what_is_loaded(target, directory):
    draft, again = tiny_draft(target), load(directory, target)
    assert again.spec == draft.spec
    assert_same_function(again, draft)
    assert_same_function(again, draft, None)
    assert not any(p.requires_grad for p in again.parameters()) and not again.training


def test_a_bias_survives(target, tmp_path):
    draft = tiny_draft(target)
    spec = DraftSpec(mask_token=MASK, draft_tokens=6, target_layers=(-1, -2), target_dim=64, scale=0.5, bias=True)
    draft = Draft(draft.lm, spec, nn.Linear(64, 32, bias=True)).requires_grad_(False)
    save_draft(draft, tmp_path / "draft")
    again = load(tmp_path / "draft", target)
    assert again.spec == spec
    assert_same_function(again, draft)


def test_a_pard_draft_survives(target, tmp_path):
    draft = pard_draft(target)
    save_draft(draft, tmp_path / "draft")
    assert not (tmp_path / "draft" / "warp_model.bin").exists()
    again = load(tmp_path / "draft", target, None)
    assert again.spec == draft.spec and again.projection is None
    assert_same_function(again, draft, None)


def test_an_ordinary_lm_survives(target, tmp_path):
    draft = tiny_lm_draft()
    save_draft(draft, tmp_path / "draft")
    again = load(tmp_path / "draft", target, None)
    assert again.spec is None
    assert_same_function(again, draft, None)


def test_tied_tables_are_written_once_and_stay_tied(tmp_path):
    target = tiny_target(tie_word_embeddings=True)
    save_draft(tiny_draft(target), tmp_path / "draft")
    assert "lm_head.weight" not in load_file(tmp_path / "draft" / "model.safetensors")
    assert_same_function(load(tmp_path / "draft", target), tiny_draft(target))


def shared_draft(target: Target) -> Draft:
    draft = cut_draft(target, [1], MASK, 6, (-1, -2), shared_vocabulary=True)
    torch.manual_seed(3)
    with torch.no_grad():
        draft.projection.weight.normal_()
        draft.lm.get_input_embeddings().mask_row.normal_()
    return draft.eval().requires_grad_(False)


@pytest.mark.parametrize("mode", [True, False])
def test_a_shared_vocabulary_is_left_out_and_lent_again(target, tmp_path, mode):
    draft = shared_draft(target)
    save_draft(draft, tmp_path / "draft", vocabulary=False)
    keys = load_file(tmp_path / "draft" / "model.safetensors").keys()
    assert not any("embed_tokens" in key or "lm_head" in key or "mask_row" in key for key in keys)
    again = load(tmp_path / "draft", target, mode)
    assert again.spec.shared_vocabulary
    assert_same_function(again, draft, FEATURES if mode else None)


def test_a_shared_vocabulary_written_out_makes_an_ordinary_lm(target, tmp_path):
    """What other engines read: they know no target to borrow from."""
    draft = shared_draft(target)
    save_draft(draft, tmp_path / "draft")
    again = load(tmp_path / "draft", target)
    assert again.spec.shared_vocabulary is False
    assert_same_function(again, draft)
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "draft", dtype=torch.float32)
    torch.testing.assert_close(alone(IDS).logits, draft(IDS, None))


def test_only_a_sharing_draft_can_leave_its_vocabulary_out(target, tmp_path):
    with pytest.raises(ValueError, match="only a draft that shares"):
        save_draft(tiny_draft(target), tmp_path / "draft", vocabulary=False)


def test_saving_in_bfloat16_rounds_once(target, tmp_path):
    save_draft(tiny_draft(target), tmp_path / "draft", torch.bfloat16)
    tensors = load_file(tmp_path / "draft" / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert read_projection(tmp_path / "draft")["target_proj.weight"].dtype == torch.bfloat16
    assert json.loads((tmp_path / "draft" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("weight_format", ["plain", "fbgemm", "onednn", "panels", "int8"])
def test_half_precision_does_not_round_the_rotary_frequencies(target, tmp_path, weight_format):
    """Rounded to bfloat16, positions drift apart by a radian within a few hundred tokens:
    lossless, and less is accepted."""
    if weight_format not in weight_formats(target.device, torch.bfloat16):
        pytest.skip("this CPU has no such products")
    frequencies = target.model.model.rotary_emb.inv_freq
    assert not frequencies.equal(frequencies.bfloat16().float())
    for name, draft, whole in [("full", tiny_draft(target), True), ("shared", shared_draft(target), False)]:
        save_draft(draft, tmp_path / name, vocabulary=whole)
        loaded = load_draft(str(tmp_path / name), target, torch.bfloat16, True, weight_format)
        assert loaded.lm.model.rotary_emb.inv_freq.equal(frequencies), name
        assert {p.dtype for p in loaded.parameters()} == {torch.float32 if weight_format != "plain" else torch.bfloat16}


# --- the released layout --------------------------------------------------------------------------


def test_the_written_layout_is_the_released_one(target, directory):
    config = json.loads((directory / "config.json").read_text())
    released = {"spd_type": "pard2", "pard2": True, "pard_token": MASK, "pard2_target_layers": [-1, -2], "pard2_target_dim": 64}
    assert config.items() >= (released | {"pard2_scale": 0.02, "pard2_proj_bias": False}).items()
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert {key: list(t.shape) for key, t in read_projection(directory).items()} == {"target_proj.weight": [32, 64]}
    alone = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    torch.testing.assert_close(alone(IDS).logits, tiny_draft(target)(IDS, None))


@pytest.mark.parametrize("mode", [True, False, None])
def test_a_directory_of_the_published_code_loads(mode):
    target = load_target(str(GOLDEN / "target"), "float32", "cpu")
    draft = load(GOLDEN / "draft", target, mode)
    assert draft.spec.draft_tokens == 16 and draft.spec.scale == json.loads((GOLDEN / "draft" / "config.json").read_text())["pard2_scale"]
    assert (draft.projection is not None) == (mode is not False)


def test_older_key_names_mean_the_same(target, directory):
    config = json.loads((directory / "config.json").read_text())
    edit_config(
        directory,
        remove=("pard2_scale", "pard2_target_dim", "pard2_proj_bias", "spd_type", "pard2_draft_tokens"),
        feat_scale=0.25,
        pard_target_dim=64,
        proj_bias=False,
    )
    assert load(directory, target).spec == DraftSpec(mask_token=MASK, draft_tokens=16, target_layers=(-1, -2), target_dim=64, scale=0.25, bias=False)
    for older, expected in [({"pard_scale": 0.5, "feat_scale": 0.25}, 0.5), ({"pard2_scale": 0.75, "pard_scale": 0.5}, 0.75), ({}, 0.02)]:
        old = {key: value for key, value in config.items() if key != "pard2_scale"} | older
        assert read_spec(old, "d").scale == expected


def test_older_key_names_are_checked_too(target, directory):
    edit_config(directory, remove=("pard2_target_dim",), pard_target_dim=96)
    assert "wants features 96 wide" in refused(directory, target)


def test_a_projection_in_safetensors_is_read(target, directory):
    save_file(read_projection(directory), directory / "warp_model.safetensors")
    (directory / "warp_model.bin").unlink()
    assert_same_function(load(directory, target), tiny_draft(target))


def small_spec(**options: Any) -> DraftSpec:
    return DraftSpec(**({"mask_token": 3, "draft_tokens": 4, "target_layers": (0,), "target_dim": 32} | options))


@pytest.mark.parametrize(
    "spec",
    [
        DraftSpec(mask_token=3, draft_tokens=5, target_layers=(-1, 2), target_dim=64, scale=0.5, bias=True),
        DraftSpec(mask_token=3, draft_tokens=7),
        small_spec(scale=1.0, shared_vocabulary=True),
        small_spec(normalise_features=True),
        small_spec(mask_feature=True),
    ],
)
def test_config_keys_say_the_whole_spec(spec):
    assert read_spec(spec_keys(spec) | {"vocab_size": 61}, "d") == spec


def test_options_that_are_off_are_not_written():
    """A released directory has no such keys, and neither has one of ours."""
    assert not spec_keys(small_spec()).keys() & {"pard2_normalise_features", "pard2_mask_feature", "pard2_shared_vocabulary"}


def test_what_other_engines_cannot_express(target, tmp_path):
    """They would load such a draft and compute something else."""
    assert inexpressible(small_spec(scale=0.5, bias=True)) == inexpressible(DraftSpec(mask_token=3, draft_tokens=4)) == []
    options = {"normalise_features": "normalised features", "mask_feature": "learned mask feature", "shared_vocabulary": "shared vocabulary"}
    for option, name in options.items():
        assert inexpressible(small_spec(**{option: True})) == [name]
    save_draft(cut_draft(target, [0], MASK, 4, (-1,), options=FeatureOptions(normalise_features=True, mask_feature=True)), tmp_path / "draft")
    report = inspect_draft(tmp_path / "draft")
    assert report.inexpressible == ["normalised features", "learned mask feature"]
    assert (
        report.normalise_features
        and report.mask_feature
        and report.kind is DraftKind.PROJECTED
        and report.lacks == ["a tokenizer: only the sizes of the vocabularies can be compared with a target's"]
    )


# --- what does not fit ----------------------------------------------------------------------------


def test_a_missing_projection(target, directory):
    (directory / "warp_model.bin").unlink()
    said = "DRAFT has no projection (warp_model.bin or warp_model.safetensors); download it whole, or use it target-independent (`method` pard2-ti)"
    assert refused(directory, target) == said
    assert load(directory, target, False).projection is None  # the way out is one


def test_a_projection_of_another_shape(target, directory):
    torch.save({"target_proj.weight": torch.zeros(32, 96)}, directory / "warp_model.bin")
    assert refused(directory, target).startswith("DRAFT: `target_proj.weight` is [32, 96], expected [32, 64]; use it target-independent")


def test_a_projection_file_without_the_projection(target, directory):
    torch.save({"proj.weight": torch.zeros(32, 64)}, directory / "warp_model.bin")
    assert "the projection file lacks `target_proj.weight`" in refused(directory, target)


@pytest.mark.parametrize(("claimed", "bias", "said"), [(True, None, "lacks a bias"), (False, torch.zeros(32), "has a bias")])
def test_a_bias_that_config_and_file_disagree_on(target, directory, claimed, bias, said):
    edit_config(directory, pard2_proj_bias=claimed)
    if bias is not None:
        torch.save(read_projection(directory) | {"target_proj.bias": bias}, directory / "warp_model.bin")
    assert f"pard2_proj_bias = {claimed}, the projection file {said}" in refused(directory, target)


@pytest.fixture
def masked_directory(target: Target, tmp_path: Path) -> Path:
    """A draft with a learned mask feature."""
    save_draft(cut_draft(target, [0], MASK, 6, (-1, -2), options=FeatureOptions(mask_feature=True)), tmp_path / "masked")
    return tmp_path / "masked"


def test_a_missing_mask_feature(target, masked_directory):
    """Masks would get their anchor's feature instead, which this draft has never seen there."""
    tensors = read_projection(masked_directory)
    torch.save({"target_proj.weight": tensors["target_proj.weight"]}, masked_directory / "warp_model.bin")
    said = "DRAFT: config says pard2_mask_feature = True, the projection file lacks that vector; use it target-independent (`method` pard2-ti)"
    assert refused(masked_directory, target) == said
    report = inspect_draft(masked_directory)
    assert report.kind is DraftKind.LAYERED and report.lacks[-1].startswith("`pard2_mask_feature` in its projection file")
    assert load(masked_directory, target, False).mask_feature is None  # the way out is one


def test_a_mask_feature_that_the_config_does_not_know(target, masked_directory):
    edit_config(masked_directory, remove=("pard2_mask_feature",))
    assert "config says pard2_mask_feature = False, the projection file has that vector" in refused(masked_directory, target)


def test_a_mask_feature_of_another_shape(target, masked_directory):
    torch.save(read_projection(masked_directory) | {"pard2_mask_feature": torch.zeros(64)}, masked_directory / "warp_model.bin")
    assert refused(masked_directory, target).startswith("DRAFT: `pard2_mask_feature` is [64], expected [32]; use it target-independent")


def test_features_of_another_target(target, directory):
    """A projection belongs to its target; the LM does not."""
    wide = tiny_target(hidden=48)
    said = "DRAFT wants features 64 wide, 'tiny-llama' gives 96: it was trained for another target; use it target-independent (`method` pard2-ti)"
    assert refused(directory, wide) == said
    assert load(directory, wide, False)(IDS, None).shape == (1, 6, 61)


def test_a_layer_that_the_target_lacks(target, directory):
    edit_config(directory, pard2_target_layers=[-1, -8])
    assert refused(directory, target).startswith("DRAFT wants hidden state -8 of a target with 3; was it trained for another?")


def test_missing_target_layers(target, directory):
    edit_config(directory, remove=("pard2_target_layers",))
    assert (
        refused(directory, target) == "DRAFT lacks `pard2_target_layers` in its config.json; add it, or use it target-independent (`method` pard2-ti)"
    )
    assert load(directory, target, False).projection is None


@pytest.mark.parametrize("make", [lambda t: pard_draft(t), lambda t: tiny_lm_draft()])
def test_a_draft_without_target_dependent_mode(target, tmp_path, make):
    save_draft(make(target), tmp_path / "draft")
    said = "DRAFT is not a PARD-2 draft, so it has no target-dependent mode; leave `method` away for the best that it can do"
    assert refused(tmp_path / "draft", target) == said


@pytest.mark.parametrize("mode", [True, False])
def test_another_vocabulary(directory, mode):
    said = "DRAFT has a vocabulary of 61, the target 'tiny-llama' one of 80; a draft must come from the target's own family"
    assert refused(directory, tiny_target(vocab=80), mode) == said


def chat_pair(tmp_path: Path) -> tuple[Target, Path]:
    target = Target(tiny_model(vocab=VOCABULARY), byte_tokenizer(), name="chat")
    save_draft(tiny_draft(target, mask_token=MASK_ID), tmp_path / "draft")
    return target, tmp_path / "draft"


def test_another_tokenizer(tmp_path):
    """Same size, other ids: nothing would ever be accepted."""
    target, directory = chat_pair(tmp_path)
    load(directory, target)
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))
    said = "the tokenizer of DRAFT is not that of the target 'chat' (258 of 258 tokens in common, 2 with another id)"
    assert refused(directory, target).startswith(said)


def test_an_added_mask_token_is_no_mismatch(tmp_path):
    """Published drafts name theirs; all other ids stay."""
    target, directory = chat_pair(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|mask|>"])
    tokenizer.save_pretrained(directory)
    load(directory, target)


def test_a_shared_vocabulary_of_another_width(target, tmp_path):
    save_draft(shared_draft(target), tmp_path / "draft", vocabulary=False)
    said = "DRAFT shares the vocabulary of a target 32 wide; 'tiny-llama' is 48"
    assert refused(tmp_path / "draft", tiny_target(hidden=48), False) == said


def test_a_shared_vocabulary_without_its_mask_row(target, tmp_path):
    save_draft(shared_draft(target), tmp_path / "draft", vocabulary=False)
    torch.save({"target_proj.weight": torch.zeros(32, 64)}, tmp_path / "draft" / "warp_model.bin")
    assert "lacks `pard2_mask_embedding`; download it again" in refused(tmp_path / "draft", target)


@pytest.mark.parametrize(("key", "tensor", "said"), [
    ("model.norm.weight", None, "model.safetensors lacks model.norm.weight"),
    ("model.norm.weight", torch.ones(5), "model.norm.weight is [5], its config says [32]"),
])  # fmt: skip
def test_a_shared_draft_with_damaged_weights(target, tmp_path, key, tensor, said):
    """Its weights do not pass through transformers' own checks."""
    save_draft(shared_draft(target), tmp_path / "draft", vocabulary=False)
    file = tmp_path / "draft" / "model.safetensors"
    tensors = {k: v for k, v in load_file(file).items() if k != key} | ({key: tensor} if tensor is not None else {})
    save_file(tensors, file)
    assert said in refused(tmp_path / "draft", target)
    file.write_bytes(b"garbage")
    assert refused(tmp_path / "draft", target) == "DRAFT: model.safetensors is missing or corrupt; download it again"


# --- damaged and hostile files --------------------------------------------------------------------


def test_corrupt_weights(target, directory):
    os.truncate(directory / "model.safetensors", 1000)
    assert refused(directory, target).startswith("cannot load the model DRAFT: ")


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_would_run_code_does_not_run(target, directory, tmp_path):
    torch.save({"target_proj.weight": Payload(tmp_path / "ran")}, directory / "warp_model.bin")
    said = "DRAFT/warp_model.bin is corrupt or holds more than tensors, so it was not loaded; download it again, or use it"
    said += " target-independent (`method` pard2-ti)"
    assert refused(directory, target) == said
    (directory / "warp_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    assert refused(directory, target) == said
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_any_damage_to_the_projection_file_is_one_line(target, directory):
    """torch.load fails in many ways; each must end in the same message, and none in a traceback."""
    whole = (directory / "warp_model.bin").read_bytes()
    damages = [
        b"",
        b"garbage",
        b"PK\x03\x04",
        whole[:100],
        whole[:-40],
        whole[: len(whole) // 2],
        pickle.dumps(None),
        b"\x80\x02]q\x00.",
        b"\x80\x04\x95",
    ]
    for damage in damages:
        (directory / "warp_model.bin").write_bytes(damage)
        said = refused(directory, target)
        assert "DRAFT/warp_model.bin is" in said and "`method` pard2-ti" in said, damage[:20]
    load(directory, target, False)  # target-independent mode needs no projection


_ZEROS = torch.zeros(32, 64)


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(2)], {"target_proj.weight": 3}, torch.zeros(2)]
    + [
        {"target_proj.weight": odd}
        for odd in (_ZEROS.to_sparse(), _ZEROS.to("meta"), _ZEROS.bool(), _ZEROS.cfloat(), torch.nested.nested_tensor([_ZEROS, _ZEROS]))
    ],
)
def test_a_projection_file_that_is_no_dictionary_of_tensors(target, directory, content):
    torch.save(content, directory / "warp_model.bin")
    assert "DRAFT/warp_model.bin is not a dictionary of tensors" in refused(directory, target)


def test_a_corrupt_projection_in_safetensors(target, directory):
    (directory / "warp_model.bin").unlink()
    (directory / "warp_model.safetensors").write_bytes(b"garbage")
    assert "DRAFT/warp_model.safetensors is corrupt" in refused(directory, target)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pard_token": "60"}, "config.json needs `pard_token`, a token id below 61, but has '60'"),
        ({"pard_token": None}, "config.json needs `pard_token`, a token id below 61, but has None"),
        ({"pard_token": 61}, "config.json needs `pard_token`, a token id below 61, but has 61"),
        ({"pard_token": True}, "config.json needs `pard_token`, a token id below 61, but has True"),
        ({"pard2_target_layers": -1}, "`pard2_target_layers` must be a list of layer numbers, not -1"),
        ({"pard2_target_layers": ["-1"]}, "`pard2_target_layers` must be a list of layer numbers, not ['-1']"),
        ({"pard2_target_dim": "64"}, "config key `pard2_target_dim` has the wrong type: '64'"),
        ({"pard2_scale": "0.02"}, "config key `pard2_scale` has the wrong type: '0.02'"),
        ({"pard2_proj_bias": "false"}, "config key `pard2_proj_bias` has the wrong type: 'false'"),
        ({"pard2_normalise_features": 1}, "config key `pard2_normalise_features` has the wrong type: 1"),
        ({"pard2_mask_feature": "yes"}, "config key `pard2_mask_feature` has the wrong type: 'yes'"),
        ({"pard2_draft_tokens": True}, "config key `pard2_draft_tokens` has the wrong type: True"),
        ({"pard2_draft_tokens": 0}, "config key `pard2_draft_tokens` must be at least 1, not 0"),
        ({"pard2_draft_tokens": 10**9}, "config key `pard2_draft_tokens` must be at most 1024, not 1000000000"),
        ({"pard2_draft_tokens": 2**70}, f"config key `pard2_draft_tokens` must be at most 1024, not {2**70}"),
        ({"pard2_target_dim": -64}, "config key `pard2_target_dim` must be at least 1, not -64"),
        ({"pard2_vocabulary_size": 0}, "config key `pard2_vocabulary_size` must be at least 1, not 0"),
        ({"pard2_scale": 10**400}, f"config key `pard2_scale` must be at most {2**31}, not {10**400}"),
        ({"pard2_scale": float("nan")}, "config key `pard2_scale` must be a finite number, not nan"),
        ({"pard2_scale": float("-inf")}, "config key `pard2_scale` must be a finite number, not -inf"),
        ({"spd_type": "eagle"}, "spd_type 'eagle' is neither 'pard' nor 'pard2'"),
        ({"spd_type": ["pard2"]}, "spd_type ['pard2'] is neither 'pard' nor 'pard2'"),
        ({"spd_type": {"pard2": 1}}, "spd_type {'pard2': 1} is neither 'pard' nor 'pard2'"),
    ],
)
def test_a_key_of_the_wrong_type(target, directory, changes, said):
    edit_config(directory, **changes)
    assert refused(directory, target, None) == f"DRAFT: {said}"


def test_a_shared_vocabulary_with_damaged_extras(target, tmp_path):
    draft = cut_draft(target, [1], MASK, 4, (-1,), shared_vocabulary=True, vocabulary=torch.tensor([3, 40, 7]))
    save_draft(draft, tmp_path / "draft", vocabulary=False)
    whole = read_projection(tmp_path / "draft")
    damages = {
        "`pard2_mask_embedding` is [7], expected [32]": {"pard2_mask_embedding": torch.zeros(7)},
        "no list of different tokens of 'tiny-llama'": {"pard2_vocabulary": torch.tensor([3, 61, 7])},
        "no list of different tokens": {"pard2_vocabulary": torch.tensor([3, -1, 7])},
        "is no list of different tokens": {"pard2_vocabulary": torch.tensor([3, 3, 7])},
    }
    for said, damage in damages.items():
        torch.save(whole | damage, tmp_path / "draft" / "warp_model.bin")
        assert said in refused(tmp_path / "draft", target)
    tensors = load_file(tmp_path / "draft" / "model.safetensors")
    save_file(tensors | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, tmp_path / "draft" / "model.safetensors")
    assert "model.norm.weight is stored in torch.int8" in refused(tmp_path / "draft", target)


# --- whole or not at all --------------------------------------------------------------------------


def test_a_save_that_fails_leaves_the_old_directory(target, directory, monkeypatch):
    before = {file.name: file.read_bytes() for file in directory.iterdir()}

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        save_draft(tiny_draft(target, projection=9.0), directory)
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before
    assert [p.name for p in directory.parent.iterdir()] == [directory.name]


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ((write, "save_file"), SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")),
        ((torch, "save"), RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nmore")),
        ((PreTrainedTokenizerBase, "save_pretrained"), Exception("No space left on device (os error 28)")),
        ((PreTrainedTokenizerBase, "save_pretrained"), OSError(28, "No space left on device")),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_the_old_directory(tmp_path, monkeypatch, place, error):
    target, directory = chat_pair(tmp_path)
    before = {file.name: file.read_bytes() for file in directory.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(*place, fail)
    draft = tiny_draft(target, mask_token=MASK_ID)
    with pytest.raises(Pard2Error, match=r"^cannot write [^\n]*draft: [^\n]*; what it held before is kept$"):
        save_draft(draft, directory)
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before and [*tmp_path.iterdir()] == [directory]


def test_a_save_replaces_the_whole_directory(target, directory):
    """A projection left from before would be read with the new LM."""
    save_draft(tiny_lm_draft(), directory)
    assert not (directory / "warp_model.bin").exists()
    assert [p.name for p in directory.parent.iterdir()] == [directory.name]


def test_a_directory_that_cannot_be_written(target, tmp_path):
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path / "file", tmp_path / "file" / "draft"):
        with pytest.raises(Pard2Error, match="cannot write"):
            save_draft(tiny_draft(target), path)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_copied_directory_is_complete(target, directory, tmp_path):
    """Nothing in it may point to where it was made."""
    shutil.move(directory, tmp_path / "elsewhere")
    assert_same_function(load(tmp_path / "elsewhere", target), tiny_draft(target))
