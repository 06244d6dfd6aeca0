"""What drafters feed to their models and keep of it."""

import pytest
import torch

from pard2.engine.drafters.autoregressive import AutoregressiveDrafter
from pard2.engine.drafters.parallel import ParallelDrafter
from pard2.engine.drafters.plain import PlainDrafter
from tiny import MASK, pard_draft, perfect_draft, tiny_draft, tiny_lm_draft, tiny_target

CONTEXT = [5, 17, 3, 3, 42, 8, 29, 11]


@pytest.fixture
def target():
    return tiny_target()


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def started(drafter, target, context=CONTEXT):
    """The drafter after a prompt of all but the last token, which the target then emitted."""
    target.capture(drafter.feature_layers)
    past = torch.tensor([context[:-1]])
    features = target.forward(past, num_logits=0).features
    drafter.prefill(past, features)
    drafter.absorb(torch.tensor([context[-1:]]), None if features is None else features[:, -1:])
    return drafter


def parallel(target, draft, dependent=True):
    return ParallelDrafter(draft, dependent, target.vocab_size, 64)


def by_definition(target, draft, context, k, dependent=True):
    """METHOD: section 2 written out, without a cache: logits [k, vocabulary] of the anchor and its masks."""
    ids = torch.tensor([context + [MASK] * (k - 1)])
    rows = draft.lm.get_input_embeddings()(ids)
    if dependent:
        target.capture(draft.spec.target_layers)
        states = target.forward(torch.tensor([context]), num_logits=0).features
        for position in range(1, ids.shape[1]):
            feature = states[:, min(position, len(context) - 1) - 1]  # f[t-1]; a mask's is its anchor's
            rows[:, position] += draft.spec.scale * draft.projection(feature)
    return draft.lm(inputs_embeds=rows).logits[0, -k:]


@pytest.mark.parametrize("dependent", [True, False])
@pytest.mark.parametrize("k", [1, 2, 6])
def test_proposals_follow_the_definition(target, dependent, k):
    """Fails if tokens are shifted, row 0 is dropped or fed a feature, or a mask gets its own feature."""
    draft = tiny_draft(target, projection=20.0)  # large, so that every feature matters
    seen = []
    draft.lm.register_forward_hook(lambda _module, _args, output: seen.append(output.logits))
    drafter = started(parallel(target, draft, dependent), target)
    proposals = drafter.propose(k).token_ids
    ours = seen[-1][0]
    expected = by_definition(target, draft, CONTEXT, k, dependent)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
    assert proposals.tolist() == [expected.argmax(-1).tolist()]


def test_row_zero_is_fed_with_the_zero_feature(target):
    draft = tiny_draft(target)
    fed = []
    embed = draft.embed
    draft.embed = lambda ids, features: fed.append((ids, features)) or embed(ids, features)
    drafter = started(parallel(target, draft), target)
    drafter.propose(3)
    target.capture(draft.spec.target_layers)
    states = target.forward(torch.tensor([CONTEXT[:-1]]), num_logits=0).features
    (prompt, features), (block, block_features) = fed
    assert prompt[0].tolist() == CONTEXT[:-1]
    assert not features[0, 0].any()
    torch.testing.assert_close(features[0, 1:], states[0, :-1])
    assert block[0].tolist() == [CONTEXT[-1], MASK, MASK]
    torch.testing.assert_close(block_features[0], states[0, -1].expand(3, -1))


def test_masks_leave_no_trace_in_the_cache(target):
    drafter = started(parallel(target, tiny_draft(target)), target)
    length = len(CONTEXT)
    for k, emitted in [(6, 3), (1, 1), (4, 5), (6, 7)]:
        drafter.propose(k)
        assert drafter.cache.length == length
        drafter.absorb(torch.randint(0, 60, (1, emitted)), torch.randn(1, emitted, 64))
        length += emitted
    drafter.propose(2)
    assert drafter.cache.length == length


def test_cutting_trailing_masks_leaves_earlier_proposals_unchanged(target):
    draft = tiny_draft(target)
    whole = started(parallel(target, draft), target).propose(6).token_ids[0].tolist()
    assert len(set(whole)) > 1
    for k in range(1, 6):
        assert started(parallel(target, draft), target).propose(k).token_ids[0].tolist() == whole[:k]


@pytest.mark.parametrize("emitted", [1, 2, 4, 7])
@pytest.mark.parametrize("dependent", [True, False])
def test_absorbing_a_block_equals_starting_afresh_behind_it(target, emitted, dependent):
    draft = tiny_draft(target, projection=5.0)
    longer = CONTEXT + [31, 2, 50, 14, 14, 9, 27][:emitted]
    drafter = started(parallel(target, draft, dependent), target)
    drafter.propose(6)
    features = None
    if dependent:
        features = target.forward(torch.tensor([longer]), num_logits=0).features[:, len(CONTEXT) - 1 : -1]
    drafter.absorb(torch.tensor([longer[len(CONTEXT) :]]), features)
    expected = by_definition(target, draft, longer, 6, dependent)
    assert drafter.propose(6).token_ids[0].tolist() == expected.argmax(-1).tolist()


@pytest.mark.parametrize("accepted", [0, 1, 3, 4])
def test_autoregressive_cache_holds_what_was_accepted_and_no_more(target, accepted):
    """With all 4 accepted the cache lacks the last guess, which was never fed; then two tokens are pending."""
    draft = tiny_lm_draft()
    drafter = started(AutoregressiveDrafter(draft, target.vocab_size, 64), target)
    guesses = drafter.propose(4).token_ids[0].tolist()
    text = CONTEXT + guesses[:accepted] + [33]
    drafter.absorb(torch.tensor([text[len(CONTEXT) :]]), None)
    fresh = started(AutoregressiveDrafter(draft, target.vocab_size, 64), target, text)
    assert drafter.propose(4).token_ids.tolist() == fresh.propose(4).token_ids.tolist()
    assert drafter.cache.length == len(text) + 3


def test_autoregressive_proposes_its_models_greedy_text(target):
    draft = perfect_draft(target)
    drafter = started(AutoregressiveDrafter(draft, target.vocab_size, 64), target)
    text = list(CONTEXT)
    for _ in range(5):
        text.append(int(target.forward(torch.tensor([text])).logits[0, -1].argmax()))
    assert drafter.propose(5).token_ids[0].tolist() == text[len(CONTEXT) :]


def test_limit_ends_with_the_drafts_own_context_or_training(target):
    draft = pard_draft(target, context=20)
    drafter = parallel(target, draft, dependent=False)
    # The anchor sits at length - 1, and the last of k slots at length + k - 2, which must be below 20.
    assert [drafter.limit(length) for length in (1, 15, 16, 20, 21, 40)] == [6, 6, 5, 1, 0, 0]
    lm = AutoregressiveDrafter(tiny_lm_draft(context=20), 61, 64)
    assert [lm.limit(length) for length in (1, 20, 21, 40)] == [20, 1, 0, 0]
    assert PlainDrafter().limit(1) == 0


def test_features_in_the_wrong_mode_are_refused(target):
    """Else TD would quietly draft as TI: the same text, fewer tokens accepted, no error."""
    tokens, features = torch.tensor([[1, 2]]), torch.randn(1, 2, 64)
    for dependent, given in [(True, None), (False, features)]:
        drafter = parallel(target, tiny_draft(target), dependent)
        for read in (drafter.prefill, drafter.absorb):
            with pytest.raises(ValueError, match="features"):
                read(tokens, given)
