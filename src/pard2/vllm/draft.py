"""A PARD-2 draft as vLLM's way for EAGLE-3 with parallel drafting runs it.

That way pairs each token x[t+1] with the target's states at t, as PARD-2 does, and adds mask tokens behind
the last one. Three things differ, and are mended here:

- A mask token takes its anchor's feature (METHOD: section 2): that of the last real token before it.
- The last state is the target's after its final norm; vLLM gives it without.
- The very first token is not fed, as no feature belongs to it. A draft leans on it (the first position draws
  attention whatever comes), so it takes the place of the second one. The chat template says which it is.
"""

from collections.abc import Iterable
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer
from vllm.config import VllmConfig
from vllm.config.utils import replace
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.qwen3_eagle3 import Eagle3Qwen3ForCausalLM

from pard2.checkpoints.draft_spec import read_spec
from pard2.checkpoints.projection_file import BIAS, MASK_FEATURE, WEIGHT, read_projection_file
from pard2.checkpoints.read import checkpoint_directory
from pard2.models.draft import DraftSpec, normalised
from pard2.reading import read_json


class _Pard2Draft(nn.Module):
    """What `LlamaDraft` and `Qwen3Draft` have in common.

    Any draft whose config has no `pard2_target_layers` is what vLLM itself makes of it.
    """

    stock: Any
    lm_class: Any
    lm: Any
    model: Any
    final_norm: Tensor
    mask_feature: Tensor
    mask_hidden: Tensor

    def __new__(cls, *, vllm_config: VllmConfig, prefix: str = "") -> Any:
        if _spec(vllm_config) is None:
            return cls.stock(vllm_config=vllm_config, prefix=prefix)
        return super().__new__(cls)

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)
        spec, draft = _spec(vllm_config), vllm_config.speculative_config.draft_model_config
        assert spec is not None and spec.target_layers is not None
        self.spec = spec
        self.config = draft.hf_config
        # Of its own name: attention layers are told apart by it.
        self.lm = self.lm_class(vllm_config=replace(vllm_config, model_config=draft, quant_config=None), prefix="pard2")
        self.model, self.lm_head, self.logits_processor = self.lm.model, self.lm.lm_head, self.lm.logits_processor
        self.draft_id_to_target_id = None
        self.has_own_embed_tokens = self.has_own_lm_head = True  # with the mask token's row
        target = vllm_config.model_config
        states = target.get_total_num_hidden_layers() + 1
        self.states = [layer % states for layer in spec.target_layers]
        self.config.eagle_aux_hidden_state_layer_ids = sorted(set(self.states))
        self.last_state = states - 1
        self.epsilon = target.hf_text_config.rms_norm_eps
        width, hidden = target.get_hidden_size(), draft.get_hidden_size()
        self.projection = nn.Linear(width * len(self.states), hidden, bias=spec.bias)
        self.register_buffer("final_norm", torch.ones(width), persistent=False)
        self.register_buffer("mask_feature", torch.zeros(hidden), persistent=False)
        self.register_buffer("mask_hidden", torch.zeros(1, width * len(self.config.eagle_aux_hidden_state_layer_ids)), persistent=False)
        self.first_token = _first_token(draft.model)
        self._places = draft.model, target.model

    def embed_input_ids(self, input_ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.model.embed_input_ids(input_ids)

    def combine_hidden_states(self, hidden_states: Tensor) -> Tensor:
        """`scale * W f` of states [.., n * target width], which are in ascending order of layers."""
        layers = self.config.eagle_aux_hidden_state_layer_ids
        found = dict(zip(layers, hidden_states.chunk(len(layers), dim=-1), strict=True))
        if self.last_state in found:
            state = found[self.last_state].float()
            state = state * torch.rsqrt(state.square().mean(-1, keepdim=True) + self.epsilon)
            found[self.last_state] = (self.final_norm * state.to(hidden_states.dtype)).to(hidden_states.dtype)
        features = torch.cat([found[state] for state in self.states], dim=-1)
        if self.spec.normalise_features:
            features = normalised(features, len(self.states))
        return self.spec.scale * self.projection(features.to(self.projection.weight.dtype)).to(hidden_states.dtype)

    def forward(self, input_ids: Tensor, positions: Tensor, hidden_states: Tensor, inputs_embeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """States [T, hidden] before the head, for the logits and (unused by parallel drafting) the next pass.

        input_ids, positions: [T], the tokens of all sequences, one sequence after the other.
        hidden_states: [T, hidden] of `combine_hidden_states`.
        """
        first, masks = positions == 0, input_ids == self.spec.mask_token
        input_ids = torch.where(first, self.first_token, input_ids)
        of_zeros = self.spec.scale * self.projection.bias if self.spec.bias else torch.zeros_like(hidden_states[0])
        hidden_states = torch.where(first[:, None], of_zeros.to(hidden_states.dtype), hidden_states)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        anchors = torch.where(masks, 0, rows).cummax(0).values
        projected = hidden_states[anchors]
        if self.spec.mask_feature:
            projected = torch.where(masks[:, None], self.spec.scale * self.mask_feature, projected)
        states = self.model(None, positions, None, inputs_embeds=self.model.embed_input_ids(input_ids) + projected.to(hidden_states.dtype))
        return states, states

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        return self.lm.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """The LM's weights, as vLLM reads them; what stands beside them it does not know of."""
        loaded = {f"lm.{name}" for name in self.lm.load_weights(weights)}
        draft, target = self._places
        tensors = read_projection_file(checkpoint_directory(draft), draft, required=True)
        self.projection.weight.data.copy_(tensors[WEIGHT])
        if self.spec.bias:
            self.projection.bias.data.copy_(tensors[BIAS])
        if self.spec.mask_feature:
            self.mask_feature.copy_(tensors[MASK_FEATURE])
        if self.last_state in self.states:
            self.final_norm.copy_(_final_norm(target))
        return loaded | {name for name, _ in self.named_parameters() if not name.startswith("lm.")}


class LlamaDraft(_Pard2Draft, Eagle3LlamaForCausalLM):
    stock, lm_class = Eagle3LlamaForCausalLM, LlamaForCausalLM


class Qwen3Draft(_Pard2Draft, Eagle3Qwen3ForCausalLM):
    stock, lm_class = Eagle3Qwen3ForCausalLM, Qwen3ForCausalLM


def _spec(vllm_config: VllmConfig) -> DraftSpec | None:
    """What the config says of a PARD-2 draft; None of any other."""
    name = vllm_config.speculative_config.draft_model_config.model
    spec = read_spec(read_json(checkpoint_directory(name) / "config.json"), name)
    return spec if spec is not None and spec.target_layers else None


def _first_token(draft: str) -> int:
    """Which every conversation begins with, by the chat template."""
    tokenizer = AutoTokenizer.from_pretrained(draft)
    return int(tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=True, return_dict=False)[0])


def _final_norm(target: str) -> Tensor:
    """Weight of the norm behind a target's last layer."""
    for file in sorted(checkpoint_directory(target).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in ("model.norm.weight", "norm.weight", "model.language_model.norm.weight"):
                if name in tensors.keys():  # noqa: SIM118  # it is no dictionary
                    return tensors.get_tensor(name)
    raise ValueError(f"{target} has no model.norm.weight in its safetensors files")
