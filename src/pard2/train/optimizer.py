"""AdamW or Muon, the learning rate's schedule, and a running mean of the weights.

What they hold goes to disk by the names of the parameters and as whole tensors, however the weights are
shared out among processes.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pard2.config import OptimizerConfig
from pard2.train.muon import Muon
from pard2.train.processes import whole, with_values

# Of each parameter, by name: what the optimizer keeps between steps.
OptimizerState = dict[str, dict[str, Tensor]]

_KEPT = {torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}, Muon: {"momentum_buffer"}}


class Optimizer:
    """AdamW, or Muon and AdamW, over named parameters, with the learning rate a function of the step."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, tables: Collection[Tensor] = ()) -> None:
        """tables: the embedding and the head, which map no states to states and are left to AdamW."""
        self.config = config
        self.parameters = dict(parameters)
        matrices = muon_matrices(self.parameters.values(), tables) if config.kind == "muon" else []
        by_muon = {id(matrix) for matrix in matrices}
        others = [parameter for parameter in self.parameters.values() if id(parameter) not in by_muon]
        projection = {id(parameter) for name, parameter in self.parameters.items() if name.startswith("projection.")}

        def groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
            """The projection, if it is one of them, is a group of its own, as it has a rate of its own."""
            parts = [[p for p in parameters if (id(p) in projection) is apart] for apart in (False, True)]
            return [{"params": part, "factor": factor} for part, factor in zip(parts, (1.0, config.projection_lr_ratio), strict=True) if part]

        self._inner: list[torch.optim.Optimizer] = []
        if others:
            more: dict[str, Any] = {"betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay, "fused": True}
            self._inner.append(torch.optim.AdamW(groups(others), config.lr, **more))
        if matrices:
            self._inner.append(Muon(groups(matrices), config.lr, config.momentum, config.weight_decay))
        self._of = {id(parameter): inner for inner in self._inner for group in inner.param_groups for parameter in group["params"]}

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply every gradient by a scalar."""
        torch._foreach_mul_([p.grad for p in self.parameters.values() if p.grad is not None], factor)

    def clip(self) -> float:
        """Shorten the gradient to `clip`, if there is one.

        Returns its norm before, which is not finite where any gradient is not.
        """
        norm = whole(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip or math.inf))
        return float(norm)

    def step(self, step: int, steps: int) -> None:
        """Update with the rate of this step and clear the gradients."""
        for inner in self._inner:
            for group in inner.param_groups:
                group["lr"] = learning_rate(step, steps, self.config) * group["factor"]
            inner.step()
        self.skip()

    def skip(self) -> None:
        """Forget the gradients without an update."""
        for inner in self._inner:
            inner.zero_grad(set_to_none=True)

    def state_dict(self) -> OptimizerState:
        """Whole tensors on the CPU. Every process must call it."""
        return {
            name: {key: whole(value).cpu() for key, value in self._of[id(parameter)].state[parameter].items()}
            for name, parameter in self.parameters.items()
            if parameter in self._of[id(parameter)].state
        }

    def load_state_dict(self, state: OptimizerState) -> None:
        """Take back what `state_dict` gave. A parameter that no step has changed has an empty entry.

        Raises KeyError, ValueError or RuntimeError for what belongs to another model.
        """
        for name, values in state.items():
            parameter = self.parameters[name]
            inner = self._of[id(parameter)]
            if not values:
                continue
            if values.keys() != _KEPT[type(inner)] or ("step" in values and values["step"].dim()):
                raise ValueError(f"{name}: no state of {type(inner).__name__}")
            # AdamW keeps its count of steps as a CPU scalar, whatever the parameters' device.
            inner.state[parameter] = {key: value if key == "step" else with_values(parameter.detach(), value) for key, value in values.items()}


def muon_matrices(parameters: Iterable[nn.Parameter], tables: Collection[Tensor]) -> list[nn.Parameter]:
    """Those that Muon is made for: matrices, but for the tables."""
    left_out = {id(table) for table in tables}
    return [parameter for parameter in parameters if parameter.dim() == 2 and id(parameter) not in left_out]


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up to `lr`, then by `schedule` down to `lr * min_lr_ratio` at the last step.

    step: counted from 0.
    """
    warmup = config.warmup(steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * share)), "linear": 1 - share, "constant": 1.0}[config.schedule]
    low = config.lr * config.min_lr_ratio
    return low + (config.lr - low) * left


class WeightAverage:
    """Running mean of weights, which it starts from: m <- decay * m + (1 - decay) * w after each step."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters = dict(parameters)
        self._decay = decay
        self._means = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(list(self._means.values()), [p.detach() for p in self._parameters.values()], 1 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The mean takes the weights' place for as long as the block runs."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self._means[name])
            self._means[name] = kept

    def state_dict(self) -> dict[str, Tensor]:
        """Whole tensors on the CPU. Every process must call it."""
        return {name: whole(mean).cpu() for name, mean in self._means.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises KeyError or RuntimeError for the state of another model."""
        self._means = {name: with_values(mean, state[name]) for name, mean in self._means.items()}
