"""Batched decoding: no sequence may notice that it has neighbours."""

import pytest
import torch

from pard2.data.generation import _draw, generate_batch
from tiny import greedy, random_prompts, set_eos, tiny_target


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "gpt2"])
def test_a_batch_says_what_each_prompt_says_alone(architecture):
    """Fails if left padding is visible, shifts positions (seen by learned ones, as gpt2 has), or a finished row's neighbour loses its own cache."""
    target = tiny_target(seed=3, architecture=architecture)
    prompts = random_prompts(6, longest=20, seed=1)
    alone = [greedy(target, prompt, 24) for prompt in prompts]
    assert generate_batch(target, prompts, 24, 0.0, 1.0, 0) == alone

    # Stop tokens that end the rows at different times, so that rows are dropped from the batch.
    stops = {alone[0][2], alone[1][7], alone[2][12]}
    set_eos(target, *stops)
    expected = [next((tokens[:i] for i, t in enumerate(tokens) if t in stops), tokens) for tokens in alone]
    assert len({len(tokens) for tokens in expected}) > 2
    assert generate_batch(target, prompts, 24, 0.0, 1.0, 0) == expected


def test_seeds():
    target, prompts = tiny_target(), random_prompts(3)
    first = generate_batch(target, prompts, 12, 1.0, 1.0, 5)
    torch.manual_seed(99)  # the global generator must not matter
    assert generate_batch(target, prompts, 12, 1.0, 1.0, 5) == first
    assert generate_batch(target, prompts, 12, 1.0, 1.0, 6) != first


@pytest.mark.parametrize(
    ("top_p", "allowed"),
    [(0.0, {2}), (0.4, {2}), (0.5, {2}), (0.51, {2, 0}), (0.79, {2, 0}), (0.9, {2, 0, 3}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, allowed):
    logits = torch.tensor([0.3, 0.05, 0.5, 0.15]).log().expand(2000, 4)
    drawn = _draw(logits, 1.0, top_p, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == allowed


def test_temperature_divides_the_logits():
    logits = torch.tensor([0.2, 0.8]).log().expand(20000, 2)
    share = _draw(logits, 0.5, 1.0, torch.Generator().manual_seed(0)).float().mean()
    assert abs(share - 0.64 / 0.68) < 0.01


def test_a_tiny_temperature_is_nearly_greedy_and_not_nan():
    logits = torch.tensor([[80.0, 90.0, 70.0]])
    assert _draw(logits, 1e-38, 1.0, torch.Generator().manual_seed(0)).tolist() == [1]
