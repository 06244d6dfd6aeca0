"""The draft model for vLLM, on stand-ins for vLLM's own classes: it must compute what pard2's draft computes.

The real vLLM runs in `make test-vllm`.
"""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from chat_tokenizer import MASK_ID, VOCABULARY, byte_tokenizer
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.models.target import Target
from tiny import tiny_draft, tiny_model


class StandInLM(nn.Module):
    """vLLM's language model by transformers': one sequence, no cache."""

    def __init__(self, *, vllm_config, prefix):
        super().__init__()
        from transformers import AutoModelForCausalLM

        self.inner = AutoModelForCausalLM.from_pretrained(vllm_config.model_config.model, dtype=torch.float32)
        self.model, self.lm_head, self.logits_processor = _Model(self.inner.model), self.inner.lm_head, None
        assert prefix == "pard2"

    def compute_logits(self, states):
        return self.lm_head(states)

    def load_weights(self, weights):
        return {name for name, _ in weights}


class _Model(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def embed_input_ids(self, ids):
        return self.inner.embed_tokens(ids)

    def forward(self, input_ids, positions, intermediate, inputs_embeds):
        assert input_ids is None and intermediate is None
        return self.inner(inputs_embeds=inputs_embeds[None], position_ids=positions[None]).last_hidden_state[0]


class StockEagle3(nn.Module):
    def __init__(self, *, vllm_config, prefix=""):
        super().__init__()


@pytest.fixture
def module(monkeypatch):
    """`pard2.vllm.draft`, where vLLM's modules are stand-ins."""

    def stand_in(name, **members):
        made = ModuleType(name)
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, name, made)

    models = "vllm.model_executor.models"
    for name in ("vllm", "vllm.model_executor", models):
        stand_in(name)
    stand_in("vllm.config", VllmConfig=object)
    stand_in("vllm.config.utils", replace=lambda config, **changes: SimpleNamespace(**(vars(config) | changes)))
    stand_in(f"{models}.llama", LlamaForCausalLM=StandInLM)
    stand_in(f"{models}.qwen3", Qwen3ForCausalLM=StandInLM)
    stand_in(f"{models}.llama_eagle3", Eagle3LlamaForCausalLM=StockEagle3)
    stand_in(f"{models}.qwen3_eagle3", Eagle3Qwen3ForCausalLM=StockEagle3)
    monkeypatch.delitem(sys.modules, "pard2.vllm.draft", raising=False)
    yield importlib.import_module("pard2.vllm.draft")
    sys.modules.pop("pard2.vllm.draft", None)


def config_for(target, draft):
    """What vLLM hands a draft model."""

    def model_config(directory, layers, hidden):
        return SimpleNamespace(
            model=str(directory),
            hf_config=SimpleNamespace(),
            hf_text_config=SimpleNamespace(rms_norm_eps=1e-6),
            get_total_num_hidden_layers=lambda: layers,
            get_hidden_size=lambda: hidden,
        )

    return SimpleNamespace(
        model_config=model_config(*target), speculative_config=SimpleNamespace(draft_model_config=model_config(*draft)), quant_config=None
    )


@pytest.fixture(params=["plain", "normalised", "bias"])
def pair(request, tmp_path):
    """Target and draft with their directories; the draft's final norm is not all ones."""
    target = Target(tiny_model(layers=4, vocab=VOCABULARY, initializer_range=0.2), byte_tokenizer(), "tiny")
    target.model.model.norm.weight.data.uniform_(0.5, 1.5)
    draft = tiny_draft(target, [0, 2], draft_tokens=4, projection=0.05, mask_token=MASK_ID)
    draft.spec = draft.spec.__class__(**(vars(draft.spec) | {"normalise_features": request.param == "normalised", "bias": request.param == "bias"}))
    if request.param == "bias":
        draft.projection.bias = nn.Parameter(torch.full((draft.projection.out_features,), 0.3))
    draft.tokenizer = byte_tokenizer()
    target.model.save_pretrained(tmp_path / "t")
    byte_tokenizer().save_pretrained(tmp_path / "t")
    save_draft(draft, tmp_path / "d")
    loaded = load_target(str(tmp_path / "t"), "float32", "cpu", "plain")
    return loaded, load_draft(str(tmp_path / "d"), loaded, torch.float32, weight_format="plain"), tmp_path


def test_a_pass_computes_something_else_than_pard2(module, pair):
    """A text from its beginning on, with three mask tokens behind it."""
    target, draft, places = pair
    hidden = target.hidden_size
    vllm_config = config_for((places / "t", 4, hidden), (places / "d", 2, draft.lm.config.hidden_size))
    ours = module.LlamaDraft(vllm_config=vllm_config)
    loaded = ours.load_weights([("weight", torch.zeros(1))])
    assert loaded == {"lm.weight", "projection.weight", *(("projection.bias",) if draft.spec.bias else ())}
    ids = torch.randint(5, 200, (9,))
    ids[0] = ours.first_token
    with torch.no_grad():
        out = target.model(ids[None], output_hidden_states=True).hidden_states
        before_norm = []
        handle = target.model.model.norm.register_forward_pre_hook(lambda module, inputs: before_norm.append(inputs[0]))
        target.model(ids[None])
        handle.remove()
        layers = ours.config.eagle_aux_hidden_state_layer_ids
        assert layers == sorted({layer % 5 for layer in draft.spec.target_layers})
        given = torch.cat([before_norm[0][0] if layer == 4 else out[layer][0] for layer in layers], dim=-1)
        combined = ours.combine_hidden_states(given)
        masks = torch.full((3,), MASK_ID)
        # vLLM pairs x[t+1] with the states at t; positions are those of the states.
        rows = torch.cat([ids[1:9], masks])
        features = torch.cat([combined[:8], torch.full((3, combined.shape[1]), 7.0)])  # vLLM's own for masks, which must not matter
        states, _ = ours(rows, torch.arange(11), features)
        whole = torch.cat(
            [torch.zeros(1, len(draft.spec.target_layers) * hidden), torch.cat([out[layer][0] for layer in draft.spec.target_layers], -1)]
        )
        # pard2's, of a text without its second token.
        kept = torch.tensor([0, *range(2, 9)])
        expected = draft(torch.cat([ids[kept], masks])[None], torch.cat([whole[kept], whole[8:9].expand(3, -1)])[None])[0]
        torch.testing.assert_close(ours.compute_logits(states), expected)


def test_a_later_pass_takes_the_first_token_again_or_the_mask_of_another_sequence(module, pair):
    target, draft, places = pair
    ours = module.LlamaDraft(vllm_config=config_for((places / "t", 4, target.hidden_size), (places / "d", 2, draft.lm.config.hidden_size)))
    ours.load_weights([])
    seen = []
    ours.model.forward = lambda ids, positions, none, inputs_embeds: seen.append(inputs_embeds) or inputs_embeds
    combined = torch.randn(7, draft.lm.config.hidden_size)
    ids = torch.tensor([7, 8, MASK_ID, MASK_ID, 9, MASK_ID, MASK_ID])
    ours(ids, torch.tensor([3, 4, 5, 6, 11, 12, 13]), combined)
    anchors = combined[torch.tensor([0, 1, 1, 1, 4, 4, 4])]
    expected = ours.model.embed_input_ids(ids) + anchors
    torch.testing.assert_close(seen[0], expected)


def test_an_eagle3_draft_is_taken_for_one_of_pard2(module, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama"}')
    made = module.LlamaDraft(vllm_config=config_for((tmp_path, 4, 8), (tmp_path, 1, 8)))
    assert type(made) is StockEagle3
