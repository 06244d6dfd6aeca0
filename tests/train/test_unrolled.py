"""EAGLE-3's training pass against its plainest form, and against the pass that decodes."""

import pytest
import torch
from torch import Tensor

from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.config import ObjectiveConfig
from pard2.data.corpus import Example
from pard2.data.features import joined, online_states
from pard2.models.eagle3 import Eagle3Draft
from pard2.models.target import Target
from pard2.objective.layout import SlotLayout, build_layout
from pard2.runtime.kv_cache import KVCache
from pard2.runtime.token_batch import QuerySpan, TokenBatch
from pard2.train.packed_loss import PackedLoss
from pard2.train.packed_sequences import PackedSequence, lay_out
from pard2.train.teacher import Teacher, trained_slots, with_choices
from pard2.train.unrolled import FIRST_ANCHOR, unrolled_states
from plain_eagle3 import PlainEagle3
from tiny import tiny_target
from tiny_eagle3 import tiny_eagle3

K = 4
NORMS = [{}, {"norm_before_residual": True, "norm_output": True, "feature_norm": "each"}, {"feature_norm": "joint"}]
EXAMPLES = [
    Example.of("a", [5, 9, 3, 7, 1, 8, 2, 6], [False, False, True, True, True, False, True, True]),
    Example.of("b", [4, 4, 11, 30, 12], [False, True, True, True, True]),
    Example.of("c", [17], [False]),
]


@pytest.fixture(params=NORMS, ids=["plain", "normed", "joint"])
def pair(request) -> tuple[Target, Eagle3Draft]:
    target = tiny_target(layers=3)
    return target, tiny_eagle3(target, target_layers=(1, 2, 3), **request.param).requires_grad_(True)


def plain_logits(pair: tuple[Target, Eagle3Draft], layout: SlotLayout) -> dict[tuple[int, int, int], Tensor]:
    """[D] of every slot (document, anchor, depth) of the layout; those of first tokens are left out."""
    plain = PlainEagle3(*pair)
    found: dict[tuple[int, int, int], Tensor] = {}
    slots = list(zip(layout.document.tolist(), layout.anchor.tolist(), layout.depth.tolist(), strict=True))
    for number, example in enumerate(EXAMPLES):
        text = example.token_ids.tolist()
        features = plain.features(text)
        for anchor in range(FIRST_ANCHOR, len(text)):
            depths = 1 + max(d for i, a, d in slots if (i, a) == (number, anchor))
            for depth, logits in enumerate(plain.along(text, anchor, depths, features)):
                found[number, anchor, depth] = logits
    return {slot: found[slot] for slot in slots if slot[1] >= FIRST_ANCHOR}


def packed(objective: ObjectiveConfig, seed: int = 0) -> PackedSequence:
    return lay_out(EXAMPLES, objective, torch.Generator().manual_seed(seed), first_anchor=FIRST_ANCHOR)


def objective_of(**options) -> ObjectiveConfig:
    fields = {
        "draft_tokens": K,
        "retention": 1.0,
        "min_retention": 1.0,
        "weighting": "none",
        "ce_alpha": 0.0,
        "depth_decay": 0.8,
        "feature_drop": 0.0,
    }
    return ObjectiveConfig(**fields | options)


# --- tests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "blocks", "blocks, checkpointed"])
@pytest.mark.parametrize("options", [{}, {"retention": 0.5, "min_retention": 0.1, "anchors": "all"}])
def test_unrolled_slots_are_the_plain_ones(pair, kind, options):
    """Values and gradients, packed documents, with whole chains and with thinned ones."""
    target, draft = pair
    sequence = packed(objective_of(**options))
    features = joined(online_states(target, EXAMPLES, (1, 2, 3))).features
    plain = torch.stack(list(plain_logits(pair, sequence.layout).values()))
    states = unrolled_states(draft, sequence.token_ids, features, sequence.layout, kind.split(",")[0], "check" in kind)
    found, real = draft.lm_head(states), sequence.layout.anchor >= FIRST_ANCHOR
    torch.testing.assert_close(found[real], plain, rtol=1e-4, atol=1e-5)
    assert not states[~real].any() and len(plain) == int(real.sum()) and int(sequence.layout.depth.max()) == (K - 1 if options else 2)
    direction = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    parameters = list(draft.parameters())
    for one, other in zip(*(torch.autograd.grad((s * direction).sum(), parameters) for s in (found[real], plain)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def losses(target: Target, draft: Eagle3Draft, objective: ObjectiveConfig) -> tuple[Tensor, Tensor, PackedSequence]:
    sequence, teacher = packed(objective), Teacher.of(target, draft)
    states = joined(online_states(target, EXAMPLES, draft.spec.target_layers))
    chosen = with_choices(sequence, states, teacher)
    slots = trained_slots(chosen, states, teacher, objective)
    out = PackedLoss(draft, objective, "blocks", torch.float32)(chosen, states.features, slots, states.last_state, teacher.head, True)
    return out.loss, out.weight, chosen


def test_the_loss_is_the_published_one(pair):
    """Sum over slots of 0.8^d times the cross-entropy against the target's distribution over the draft's
    vocabulary, here less that distribution's entropy, which no gradient sees; slots where the target's first
    choice lies outside are left out."""
    target, draft = pair
    objective = objective_of()
    loss, weight, _ = losses(target, draft, objective)
    states = online_states(target, EXAMPLES, (1, 2, 3))
    total, weights = torch.zeros(()), 0.0
    for (i, a, d), logits in plain_logits(pair, packed(objective).layout).items():
        example, predicted = EXAMPLES[i], a + d + 1
        if predicted >= len(example.token_ids) or not example.predicted[predicted]:
            continue
        whole = target.model.get_output_embeddings().weight @ states[i].last_state[predicted - 1]
        if int(whole.argmax()) not in draft.token_ids.tolist():
            continue
        p, q = whole[draft.token_ids].softmax(0), logits.log_softmax(0)
        total = total + 0.8**d * (p * (p.log() - q)).sum()
        weights += 0.8**d
    assert float(weight) == pytest.approx(weights, rel=1e-5) and weights > 0
    torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-5)
    parameters = list(draft.parameters())
    for one, other in zip(*(torch.autograd.grad(value, parameters) for value in (loss, total)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()) + 1e-7)


def test_tokens_outside_the_draft_vocabulary_are_not_in_the_loss():
    """Others have trained them as token 0 of the draft."""
    target = tiny_target(layers=3)
    draft = tiny_eagle3(target, size=12, target_layers=(1, 2, 3)).requires_grad_(True)
    sequence = packed(objective_of())
    _, _, chosen = losses(target, draft, objective_of())
    states = joined(online_states(target, EXAMPLES, (1, 2, 3)))
    choices = target.head(states.last_state).argmax(-1)[sequence.layout.predicted_index[sequence.trained] - 1]
    inside = torch.isin(choices, draft.token_ids)
    assert 0 < int(inside.sum()) < len(inside)
    assert chosen.trained.equal(sequence.trained[inside]) and draft.token_ids[chosen.labels].equal(choices[inside])
    assert sequence.answered.sum() == len(sequence.trained)  # accuracy counts what cannot be proposed as missed


@pytest.mark.parametrize("layout", ["eagle3", "speculators"])
def test_an_exported_draft_decodes_by_the_pass_that_trained_it(pair, tmp_path, layout):
    """Every slot: batched, along chains, and as the paths of one tree a sequence."""
    target, trained = pair
    if layout == "eagle3":
        save_draft(trained, tmp_path / "draft")
    else:
        from pard2.checkpoints.eagle3 import save_eagle3

        save_eagle3(trained, tmp_path / "draft", layout="speculators")
    draft = load_draft(str(tmp_path / "draft"), target, torch.float32, weight_format="plain")
    assert isinstance(draft, Eagle3Draft)
    examples = EXAMPLES[:2]
    states = online_states(target, examples, draft.spec.target_layers)
    lengths = [len(e.token_ids) for e in examples]
    masks = [[torch.arange(1, length - d) for d in range(1, K)] for length in lengths]
    sequence = build_layout(lengths, masks)
    tokens = torch.cat([torch.from_numpy(e.token_ids).long() for e in examples])
    expected = draft.lm_head(unrolled_states(draft, tokens, joined(states).features, sequence, "dense"))
    wanted = {
        slot: row
        for slot, row in zip(
            zip(*(part.tolist() for part in (sequence.document, sequence.anchor, sequence.depth)), strict=True), expected, strict=True
        )
    }

    cache = KVCache(1, 64)
    regions = [cache.reserve(32) for _ in examples]
    texts = [e.token_ids.tolist() for e in examples]
    read = torch.tensor([token for text in texts for token in text[1:]])
    spans = [QuerySpan(region, 0, len(text) - 1) for region, text in zip(regions, texts, strict=True)]
    logits, outputs = draft.run(TokenBatch(cache, spans, read), draft.fuse(torch.cat([one.features[:-1] for one in states])), torch.arange(len(read)))
    row = 0
    for number, (region, text) in enumerate(zip(regions, texts, strict=True)):
        for anchor in range(1, len(text)):
            torch.testing.assert_close(logits[row], wanted[number, anchor, 0], rtol=1e-4, atol=1e-4)
            feature, root_feature = outputs[row : row + 1], draft.fuse(states[number].features[anchor - 1 : anchor])
            nodes, features = [], [root_feature]
            for depth in range(1, min(K, len(text) - anchor)):
                # As a chain: at the place behind the anchor's, over what earlier guesses left there.
                span = QuerySpan(region, anchor - 1 + depth, 1)
                said, following = draft.run(TokenBatch(cache, [span], torch.tensor([text[anchor + depth]])), feature, torch.tensor([0]))
                torch.testing.assert_close(said[0], wanted[number, anchor, depth], rtol=1e-4, atol=1e-4)
                # As a tree: the root again, and a wrong sibling before each node.
                parent = 2 * (depth - 1)
                nodes += [((text[anchor + depth] + 1) % 61, parent), (text[anchor + depth], parent)]
                features += [feature, feature]
                tree = QuerySpan(region, anchor - 1, 1 + len(nodes), (-1, *(place for _, place in nodes)))
                batch = TokenBatch(cache, [tree], torch.tensor([text[anchor], *(token for token, _ in nodes)]))
                said, _ = draft.run(batch, torch.cat(features), torch.tensor([len(nodes)]))
                torch.testing.assert_close(said[0], wanted[number, anchor, depth], rtol=1e-4, atol=1e-4)
                if depth + 1 < min(K, len(text) - anchor):  # the tree lay over the chain's keys: read it again
                    _reread(draft, cache, region, text, anchor, depth, outputs[row : row + 1])
                feature = following
            _reread(draft, cache, region, text, None, None, draft.fuse(states[number].features[:-1]))
            row += 1


def _reread(draft, cache, region, text, anchor, depth, features) -> None:
    """Put the chain (or, without an anchor, the whole text) back into the cache."""
    if anchor is None:
        draft.run(TokenBatch(cache, [QuerySpan(region, 0, len(text) - 1)], torch.tensor(text[1:])), features, None)
        return
    for step in range(1, depth + 1):
        span = QuerySpan(region, anchor - 1 + step, 1)
        _, features = draft.run(TokenBatch(cache, [span], torch.tensor([text[anchor + step]])), features, None)
