"""Features and logits of the target, against transformers' own."""

import pytest
import torch

from pard2.errors import Pard2Error
from pard2.models.target import Target
from pard2.runtime.hidden_states import RecordedStates
from tiny import set_eos, tiny_model, tiny_target

ARCHITECTURES = ["llama", "qwen3", "gpt2", "gemma2"]
IDS = torch.tensor([[5, 9, 2, 7, 7, 1], [3, 3, 8, 0, 4, 6]])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_are_transformers_hidden_states(architecture):
    """Every index, from both ends: -1 is after the final norm, 0 the embedding, the others lie between."""
    target = tiny_target(layers=3, architecture=architecture)
    states = target.model(IDS, output_hidden_states=True).hidden_states
    assert target.num_states == len(states) == 4
    for layer in range(-4, 4):
        torch.testing.assert_close(target.forward(IDS, layers=[layer]).features, states[layer], rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_head_makes_the_models_own_logits(architecture):
    """Gemma 2 caps them."""
    target = tiny_target(architecture=architecture)
    output = target.forward(IDS)
    torch.testing.assert_close(target.head(output.last_state), output.logits)
    torch.testing.assert_close(output.logits, target.model(IDS).logits)


def test_gemmas_cap_is_felt():
    """Without it the test above could not fail."""
    target = tiny_target(architecture="gemma2")
    state = target.forward(IDS).last_state
    assert (target.model.get_output_embeddings()(state) - target.head(state)).abs().max() > 0.01


def test_layers_are_joined_in_the_order_asked_for():
    """Sorted, a checkpoint's projection would read each feature from another layer's columns."""
    target = tiny_target(layers=3)
    states = target.model(IDS, output_hidden_states=True).hidden_states
    layers = (-1, 1, -3, -1)
    torch.testing.assert_close(target.forward(IDS, layers=layers).features, torch.cat([states[i] for i in layers], dim=-1))


def test_each_pass_records_what_it_was_asked_for():
    target = tiny_target(layers=3)
    assert target.forward(IDS, layers=(0, 1, 2)).features.shape == (2, 6, 96)
    assert target.forward(IDS, layers=(-2,)).features.shape == (2, 6, 32)
    assert target.forward(IDS).features is None


def test_asking_for_fewer_logits_changes_nothing_else():
    target = tiny_target()
    whole, last, none = (target.forward(IDS, num_logits=n, layers=(-1, -2)) for n in (None, 2, 0))
    torch.testing.assert_close(last.logits, whole.logits[:, -2:])
    assert none.logits is None
    for output in (last, none):
        torch.testing.assert_close(output.features, whole.features)
        torch.testing.assert_close(output.last_state, whole.last_state)


def test_no_state_is_kept_after_a_pass():
    """A long generation would otherwise hold the features of a forgotten prompt, and a failed
    pass would leave its hooks."""
    target = tiny_target()
    target.forward(IDS, layers=(-1, -2))
    with pytest.raises(IndexError):
        target.forward(IDS + 100, layers=(-1, -2))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in target.model.modules())
    assert not any(isinstance(kept, RecordedStates | torch.Tensor) for kept in vars(target._states).values())


@pytest.mark.parametrize("layer", [3, -4, 100])
def test_a_layer_that_does_not_exist_is_refused(layer):
    target = tiny_target(layers=2)
    with pytest.raises(Pard2Error, match=rf"feature layer {layer} does not exist in 'tiny-llama', which has 3 hidden states \(-3 to 2\)"):
        target.forward(IDS, layers=(-1, layer))


def test_every_end_of_answer_counts():
    """Llama 3 and Qwen name several, in the generation config alone; stopping only at the
    config's runs past the answer."""
    target = Target(tiny_model(eos_token_id=7))
    set_eos(target, 8, 9)
    assert target.eos_token_ids == {7, 8, 9}


def test_no_end_of_answer_is_none():
    assert tiny_target().eos_token_ids == frozenset()


def test_the_target_is_frozen():
    assert not any(parameter.requires_grad for parameter in tiny_target().model.parameters())
    assert not tiny_target().forward(IDS).logits.requires_grad
