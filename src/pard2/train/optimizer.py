"""AdamW with a warm-up and a cosine."""

import math

import torch
from torch import nn

from pard2.config import OptimizerConfig


class Optimizer:
    """AdamW over all trainable parameters of a module, with the learning rate a function of the step."""

    def __init__(self, module: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._inner = torch.optim.AdamW(self.parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)

    def step(self, step: int, steps: int) -> float:
        """Clip, update with the rate of this step, clear the gradients; returns the gradient's norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        for group in self._inner.param_groups:
            group["lr"] = learning_rate(step, steps, self.config)
        self._inner.step()
        self.skip()
        return float(norm)

    def skip(self) -> None:
        """Forget the gradients without an update."""
        self._inner.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        return self._inner.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self._inner.load_state_dict(state)


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up to `lr`, then a cosine down to `lr * min_lr_ratio` at the last step. `step` counts from 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    low = config.lr * config.min_lr_ratio
    return low + (config.lr - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
