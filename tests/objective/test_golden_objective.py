"""A training batch of the published implementation, reproduced: mask, labels, CAT weights, loss, gradients.

It trains every chain, those of masks that follow no token at all included (anchor -1), and predicts every
token.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from pard2.models.draft import Draft, DraftSpec
from pard2.models.target import Target, TargetOutput
from pard2.objective.chunked_loss import chunked_loss
from pard2.objective.cod import keep_masks
from pard2.objective.layout import SlotLayout, attention_mask, build_layout, slot_features, slot_tokens
from pard2.objective.loss import Objective, TrainedSlots, weighted_loss
from pard2.objective.weights import cat_weights
from pard2.train.attention import AttentionKind, draft_states

DIRECTORY = Path(__file__).parent.parent / "golden"
FACTS = json.loads((DIRECTORY / "train_K4_L12_s11.json").read_text())
K, L = FACTS["K"], FACTS["L"]


def golden_lm(tensors: dict[str, Tensor], prefix: str, hidden: int, layers: int) -> LlamaForCausalLM:
    weights = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    config = LlamaConfig(
        vocab_size=FACTS["vocab"],
        hidden_size=hidden,
        intermediate_size=weights["model.layers.0.mlp.up_proj.weight"].shape[0],
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=weights["model.layers.0.self_attn.q_proj.weight"].shape[0] // 4,
        tie_word_embeddings=False,
    )
    lm = LlamaForCausalLM(config)
    lm.load_state_dict(weights)
    return lm


@dataclass(frozen=True)
class Batch:
    golden: dict[str, Tensor]
    ids: Tensor
    target: Target
    draft: Draft
    said: TargetOutput
    layout: SlotLayout
    predicted: Tensor  # [P] indices of the slots whose token exists
    weights: Tensor  # [S]

    @property
    def place(self) -> Tensor:
        """[S], where the reference's block layout holds each of our slots."""
        return self.layout.depth * L + self.layout.position


@pytest.fixture
def batch() -> Batch:
    golden = load_file(DIRECTORY / "train_K4_L12_s11.safetensors")
    ids = golden["ids"][0]
    target = Target(golden_lm(golden, "target.", **FACTS["target"]))
    projection = nn.Linear(*golden["target_proj.weight"].shape[::-1], bias=False)
    projection.load_state_dict({"weight": golden["target_proj.weight"]})
    spec = DraftSpec(
        mask_token=FACTS["mask_token"],
        draft_tokens=K,
        target_layers=tuple(FACTS["layers"]),
        target_dim=projection.in_features,
        scale=FACTS["scale"],
    )
    draft = Draft(golden_lm(golden, "draft.", **FACTS["draft"]), spec, projection)
    said = target.forward(ids[None], layers=FACTS["layers"])

    chains = [torch.cat([torch.tensor([-1]), a]) for a in keep_masks(torch.ones(L, dtype=torch.bool), K, 1.0, 1.0, None)]
    layout = build_layout([L], [chains])
    logprobs = torch.zeros(L)
    logprobs[1:] = said.logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    predicted = (layout.predicted_index < L).nonzero()[:, 0]
    return Batch(golden, ids, target, draft, said, layout, predicted, cat_weights(layout, logprobs))


def test_slots_are_the_references(batch: Batch):
    """Every slot that it predicts with, no other, at its position, with its token."""
    labels, place = batch.golden["labels"].flatten(), batch.place
    assert slot_tokens(batch.layout, batch.ids, FACTS["mask_token"]).equal(batch.golden["slot_ids"].flatten()[place])
    assert batch.layout.position.equal(batch.golden["slot_positions"].flatten()[place])
    block = torch.arange(len(labels)) // L
    # labels[p] is the token AT p, predicted by the slot one place to the left.
    wanted = {int(p) - 1 for p in ((labels != -100) & (torch.arange(len(labels)) % L > 0)).nonzero()[:, 0]}
    assert {int(p) for p in place[batch.predicted]} == wanted
    assert labels[place[batch.predicted] + 1].equal(batch.ids[batch.layout.predicted_index[batch.predicted]])
    assert int(block.max()) == K - 1


def test_mask_is_the_references(batch: Batch):
    assert attention_mask(batch.layout).equal(batch.golden["attend"].bool()[batch.place][:, batch.place])


def test_no_row_of_the_reference_sees_a_slot_that_we_lack(batch: Batch):
    """Equality on our slots alone would not notice that others are seen."""
    others = torch.ones(K * L, dtype=torch.bool)
    others[batch.place] = False
    assert not batch.golden["attend"].bool()[batch.place][:, others].any()


def test_weights_are_the_references(batch: Batch):
    theirs = batch.golden["weights"].flatten()[batch.place[batch.predicted] + 1]
    torch.testing.assert_close(batch.weights[batch.predicted], theirs, rtol=1e-5, atol=1e-8)


def loss_of(batch: Batch, chunk: int | None = None, kind: AttentionKind = "dense") -> Tensor:
    layout, use = batch.layout, batch.predicted
    tokens, features = slot_tokens(layout, batch.ids, FACTS["mask_token"]), slot_features(layout, batch.said.features[0])
    states = draft_states(batch.draft, tokens, features, layout, kind)[use]
    head, index = batch.draft.lm.get_output_embeddings().weight, layout.predicted_index[use]
    slots = TrainedSlots(layout.anchor_index[use], layout.depth[use], index - 1, batch.ids[index], batch.weights[use])
    objective = Objective(ce_alpha=FACTS["ce_alpha"], kd_alpha=FACTS["kd_alpha"], draft_tokens=K)
    if chunk is None:
        out = weighted_loss(states @ head.T, batch.said.logits[0], slots, objective)
    else:
        out = chunked_loss(states, head, batch.said.last_state[0], batch.target.head, slots, objective, chunk=chunk)
    return out.loss / out.weight


@pytest.mark.parametrize(("chunk", "kind"), [(None, "dense"), (1, "dense"), (7, "blocks"), (1000, "blocks")])
def test_loss_and_gradients_are_the_references(batch: Batch, chunk: int | None, kind: AttentionKind):
    loss = loss_of(batch, chunk, kind)
    torch.testing.assert_close(loss.detach(), batch.golden["loss"].reshape(()), rtol=1e-6, atol=0)
    loss.backward()
    lm = batch.draft.lm
    gradients = {
        "grad.embed": lm.model.embed_tokens.weight.grad,
        "grad.layer0.q": lm.model.layers[0].self_attn.q_proj.weight.grad,
        "grad.target_proj": batch.draft.projection.weight.grad,
    }
    for name, gradient in gradients.items():
        scale = float(batch.golden[name].abs().max())
        torch.testing.assert_close(gradient, batch.golden[name], rtol=0, atol=1e-5 * scale, msg=lambda m, name=name: f"{name}: {m}")


def test_the_golden_loss_is_not_met_without_features(batch: Batch):
    """The tolerance is tight enough to see the projection at all."""
    with torch.no_grad():
        batch.draft.projection.weight.zero_()
    assert abs(float(loss_of(batch).detach()) - float(batch.golden["loss"])) > 1e-5
