"""Every kind of attention trains the same draft, and no slot learns from one that it must
not see: told by gradients."""

import pytest
import torch
from torch import Tensor

from pard2.errors import Pard2Error
from pard2.models.draft import Draft
from pard2.objective.cod import keep_masks
from pard2.objective.layout import SlotLayout, attention_mask, build_layout, slot_features, slot_tokens
from pard2.train.attention import AttentionKind, attention_kind, draft_states
from tiny import MASK, tiny_draft, tiny_target

LENGTHS = [8, 3, 9]
kinds = pytest.mark.parametrize("kind", ["dense", "blocks", "flex"])
fast_kinds = pytest.mark.parametrize("kind", ["blocks", "flex"])
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore:.gradient_checkpointing_enable:FutureWarning")


@pytest.fixture(autouse=True)
def flex_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention's unfused form has gradients, but is refused them on a CPU."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda query, key, value: None)


def packed(lengths: list[int] = LENGTHS, seed: int = 0) -> SlotLayout:
    generator = torch.Generator().manual_seed(seed)
    return build_layout(lengths, [keep_masks(torch.ones(n, dtype=torch.bool), 4, 0.8, 0.1, generator) for n in lengths])


def trainable(architecture: str = "llama", **extra) -> Draft:
    return tiny_draft(tiny_target(architecture=architecture, **extra)).requires_grad_(True).train()


def inputs(layout: SlotLayout, draft: Draft, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids [S] and features [S, F] of random documents."""
    generator = torch.Generator().manual_seed(seed)
    count = int((layout.depth == 0).sum())
    features = torch.randn(count, draft.spec.target_dim, generator=generator)
    return slot_tokens(layout, torch.randint(0, MASK, (count,), generator=generator), MASK), slot_features(layout, features)


def loss_of(draft: Draft, kind: AttentionKind, layout: SlotLayout) -> Tensor:
    tokens, features = inputs(layout, draft)
    states = draft_states(draft, tokens, features, layout, kind, with_features=layout.document != 1)
    return states.square().mul(torch.linspace(-1, 1, states.shape[-1])).mean()


def gradients(draft: Draft, loss: Tensor) -> dict[str, Tensor]:
    draft.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in draft.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), msg=lambda m, name=name: f"{name}: {m}")


ARCHITECTURES = {"llama": {}, "qwen2": {}, "qwen3": {}, "gpt2": {}, "mistral": {"sliding_window": None}, "deepseek_v3": {}}


@pytest.mark.parametrize(("architecture", "kind"), [*((name, "blocks") for name in ARCHITECTURES), ("llama", "flex"), ("deepseek_v3", "flex")])
def test_every_kind_has_the_outputs_and_gradients_of_the_readable_one(architecture, kind):
    draft, layout = trainable(architecture, **ARCHITECTURES[architecture]), packed()
    tokens, features = inputs(layout, draft)
    with torch.no_grad():
        expected = draft_states(draft, tokens, features, layout, "dense")
        torch.testing.assert_close(draft_states(draft, tokens, features, layout, kind), expected, rtol=1e-4, atol=1e-5)
    expected = gradients(draft, loss_of(draft, "dense", layout))
    assert expected["projection.weight"].abs().max() > 0
    assert_same(gradients(draft, loss_of(draft, kind, layout)), expected)


@kinds
def test_a_slots_gradient_reaches_what_it_may_see_and_nothing_else(kind):
    """No leak from other documents, later tokens or other chains: exactly zero, not small.

    And nothing that it may see is cut off.
    """
    draft, layout = trainable(), packed([5, 2, 6])
    tokens, features = inputs(layout, draft)
    rows: list[Tensor] = []
    draft.lm.get_input_embeddings().register_forward_hook(lambda module, args, output: rows.append(output))
    states = draft_states(draft, tokens, features, layout, kind)
    probe = torch.randn(states.shape[-1], generator=torch.Generator().manual_seed(0))
    for slot, seen in enumerate(attention_mask(layout)):
        gradient = torch.autograd.grad(states[slot] @ probe, rows[0], retain_graph=True)[0][0]
        reached = (gradient != 0).any(-1)
        assert not reached[layout.document != layout.document[slot]].any()
        assert reached.equal(seen), slot


@kinds
def test_a_document_in_a_row_is_what_it_is_alone(kind):
    draft, layout = trainable(), packed()
    tokens, features = inputs(layout, draft)
    with torch.no_grad():
        together = draft_states(draft, tokens, features, layout, kind)
        for document in range(len(LENGTHS)):
            mine = layout.document == document
            alone = SlotLayout(torch.zeros_like(layout.document[mine]), layout.anchor[mine], layout.depth[mine], torch.zeros_like(layout.start[mine]))
            torch.testing.assert_close(draft_states(draft, tokens[mine], features[mine], alone, kind), together[mine], rtol=1e-4, atol=1e-5)


@fast_kinds
@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_are_run_again_attend_as_they_did(kind, reentrant):
    """Checkpointed layers attend anew in the backward pass, when the forward pass that chose
    the attention is long over."""
    draft, layout = trainable(), packed()
    expected = gradients(draft, loss_of(draft, "dense", layout))
    draft.lm.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls: list[int] = []
    draft.lm.base_model.layers[0].self_attn.register_forward_hook(lambda *args: calls.append(0))
    assert_same(gradients(draft, loss_of(draft, kind, layout)), expected)
    assert len(calls) == 2


def test_models_of_one_process_keep_their_own_rows_and_kinds():
    """Two passes are under way at once; the second must not become the mask of the
    first one's backward pass."""
    one, other = trainable(), trainable("qwen3")
    layouts = packed(), packed([5, 11], seed=1)
    expected = [gradients(draft, loss_of(draft, "dense", layout)) for draft, layout in zip((one, other), layouts, strict=True)]
    for draft in (one, other):
        draft.lm.gradient_checkpointing_enable({"use_reentrant": False})
    losses = loss_of(one, "blocks", layouts[0]), loss_of(other, "flex", layouts[1])
    assert_same(gradients(one, losses[0]), expected[0])
    assert_same(gradients(other, losses[1]), expected[1])


@fast_kinds
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_decoding_is_untouched(architecture, kind):
    draft, tokens = trainable(architecture).eval(), torch.arange(12)[None]
    config, before = draft.lm.config.to_json_string(), draft(tokens, None)
    padded = torch.ones(1, 12, dtype=torch.long)
    padded[0, :3] = 0
    before_padded = draft.lm(input_ids=tokens, attention_mask=padded).logits
    loss_of(draft, kind, packed()).backward()
    assert draft(tokens, None).equal(before)
    assert draft.lm(input_ids=tokens, attention_mask=padded).logits.equal(before_padded)
    assert draft.lm.config.to_json_string() == config


@fast_kinds
def test_autocast_is_honoured(kind):
    """Under autocast rotary embeddings leave queries in float32 and values in bfloat16."""
    draft, layout = trainable(), packed()
    with torch.autocast("cpu", torch.bfloat16):
        dense, fast = (gradients(draft, loss_of(draft, k, layout))["projection.weight"] for k in ("dense", kind))
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast, dense, rtol=0, atol=0.1 * float(dense.abs().max()))


@fast_kinds
def test_attention_that_does_not_know_the_spans_fails(kind):
    """It must not go on as plain causal attention, which sees other documents."""
    draft, layout = trainable(), packed()
    loss = loss_of(draft, kind, layout)
    draft.lm.gradient_checkpointing_enable({"use_reentrant": False})
    loss = loss_of(draft, kind, layout)
    draft.config._attn_implementation = "sdpa"
    with pytest.raises(RuntimeError, match="attn_mask"):
        loss.backward()


@fast_kinds
def test_dropped_attention_weights_are_refused(kind):
    draft = trainable("llama", attention_dropout=0.1)
    with pytest.raises(Pard2Error, match="drops attention weights with probability 0.1 in training; set loop.attention=dense"):
        loss_of(draft, kind, packed())
    loss_of(draft.eval(), kind, packed())


def test_attention_of_a_device():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [attention_kind("auto", device) for device in (cpu, cuda)] == ["blocks", "flex"]
    assert [attention_kind("dense", device) for device in (cpu, cuda)] == ["dense", "dense"]
    with pytest.raises(Pard2Error, match="loop.attention=flex trains on a GPU alone, not on cpu; set loop.attention=blocks"):
        attention_kind("flex", cpu)
