"""The ablations of the draft's features, from a run's file to a checkpoint that decodes."""

import json

import pytest
import torch

from pard2 import Engine, SamplingParams
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft
from pard2.train.loop import train


@pytest.mark.parametrize("option", ["normalise_features", "learn_mask_feature"])
def test_an_option_is_trained_exported_and_decoded_with(option, make_config, quiet, target_directory):
    """One that the checkpoint does not record would be trained with and decoded without."""
    draft = {"layers": [0, 2], "target_layers": [-1, -2], option: True}
    output = train(make_config(draft=draft), quiet)
    key = {"normalise_features": "pard2_normalise_features", "learn_mask_feature": "pard2_mask_feature"}[option]
    assert json.loads((output / "config.json").read_text())[key] is True
    target = load_target(str(target_directory), "float32", "cpu")
    loaded = load_draft(str(output), target, torch.float32, target_dependent=True)
    assert (loaded.mask_feature is not None) == (option == "learn_mask_feature")
    if loaded.mask_feature is not None:
        assert loaded.mask_feature.abs().max() > 0  # it began at zero
    (completion,) = Engine(target, loaded, "pard2-td").generate([[5, 6, 7]], SamplingParams(max_tokens=8))
    (plain,) = Engine(target).generate([[5, 6, 7]], SamplingParams(max_tokens=8))
    assert completion.token_ids == plain.token_ids
