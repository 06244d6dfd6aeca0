"""Batched decoding with the target alone, for making data, where throughput counts and latency does not."""

import torch
from torch import Tensor

from pard2.models.cache import KVCache
from pard2.models.target import Target


@torch.inference_mode()
def generate_batch(target: Target, prompts: list[list[int]], max_new_tokens: int, temperature: float, top_p: float, seed: int) -> list[list[int]]:
    """New token ids of each prompt, end-of-answer token left out.

    temperature 0 is greedy. The same seed and batch give the same tokens. A continuation that
    reached `max_new_tokens` without ending has exactly that many tokens.
    """
    device = target.device
    width = max(map(len, prompts))
    pads = torch.tensor([width - len(p) for p in prompts], device=device)
    tokens = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    generator = torch.Generator(device).manual_seed(seed)
    cache = KVCache(target.num_states - 1, capacity=width + max_new_tokens)
    outputs: list[list[int]] = [[] for _ in prompts]
    alive = torch.arange(len(prompts), device=device)  # the prompt that each row of the batch belongs to
    for _ in range(max_new_tokens):
        end = cache.length + tokens.shape[1]
        visible = (torch.arange(end, device=device) >= pads[:, None]).long()
        positions = (torch.arange(cache.length, end, device=device) - pads[:, None]).clamp(min=0)
        logits = target.forward(tokens, cache, num_logits=1, attention_mask=visible, position_ids=positions).logits[:, -1].float()
        drawn = _draw(logits, temperature, top_p, generator)
        going = []
        for row, (prompt, token) in enumerate(zip(alive.tolist(), drawn.tolist(), strict=True)):
            if token not in target.eos_token_ids:
                outputs[prompt].append(token)
                going.append(row)
        if not going:
            break
        if len(going) < len(alive):  # a finished row would cost as much as a running one
            rows = torch.tensor(going, device=device)
            cache.keep_rows(rows)
            alive, pads, drawn = alive[rows], pads[rows], drawn[rows]
        tokens = drawn[:, None]
    return outputs


def _draw(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """One token for each row of logits [B, V]."""
    if temperature == 0:
        return logits.argmax(-1)
    # The largest becomes 0, so that a tiny temperature overflows to certainty and not to NaN.
    probabilities = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        outside = before >= top_p
        outside[:, 0] = False  # the most probable token always stays
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered.masked_fill(outside, 0))
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
