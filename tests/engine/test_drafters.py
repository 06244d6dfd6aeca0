"""What drafters feed to their models and keep of it."""

import pytest
import torch

from pard2.engine.draft_selection import DraftSelector
from pard2.engine.draft_state import DraftState
from pard2.engine.drafters.autoregressive import AutoregressiveDrafter
from pard2.engine.drafters.base import MOST_PENDING, DraftRequest
from pard2.engine.drafters.parallel import ParallelDrafter
from pard2.engine.drafters.plain import PlainDrafter
from pard2.engine.sampling import SamplingParams
from pard2.engine.sequence import Sequence
from tiny import MASK, pard_draft, perfect_draft, tiny_draft, tiny_lm_draft, tiny_target

CONTEXT = [5, 17, 3, 3, 42, 8, 29, 11]
POSITIONS = 64


@pytest.fixture
def target():
    return tiny_target()


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def states(target, layers, tokens):
    """The target's features [len(tokens), F]."""
    return target.forward(torch.tensor([tokens]), num_logits=0, layers=layers).features[0]


def shifted(drafter, target, text, start):
    """What text[start:] is updated with: the features of the positions before, zero before the first."""
    if not drafter.feature_layers:
        return None
    features = states(target, drafter.feature_layers, text)
    return torch.cat([torch.zeros_like(features[:1]), features[:-1]])[start:]


def started(drafter, target, context=CONTEXT, positions=POSITIONS):
    """Its state of a prompt of all but the last token, which the target then emitted."""
    state = drafter.open(positions)
    features = shifted(drafter, target, context, 0)
    for part in (slice(0, len(context) - 1), slice(len(context) - 1, None))[len(context) == 1 :]:
        drafter.update(state, context[part], None if features is None else features[part])
    return state


def parallel(target, draft, dependent=True, positions=4 * POSITIONS):
    return ParallelDrafter(draft, dependent, target.vocab_size, positions)


def autoregressive(target, draft, positions=4 * POSITIONS):
    return AutoregressiveDrafter(draft, target.vocab_size, positions)


def selector(count=1):
    """Takes the most probable tokens of so many sequences."""
    sequence = Sequence(prompt=[1], params=SamplingParams(), seed=0, index=0, max_new_tokens=9, stop_token_ids=frozenset(), text=None)
    return DraftSelector([sequence] * count, "greedy", "token", 61)


def propose_all(drafter, requests):
    return [proposal.token_ids.tolist() for proposal in drafter.propose(requests, selector(len(requests))).proposals]


def propose(drafter, state, k):
    return propose_all(drafter, [DraftRequest(state, k)])[0]


def by_definition(target, draft, context, k, dependent=True):
    """METHOD: section 2 written out, without a cache: logits [k, vocabulary] of the anchor and its masks."""
    ids = torch.tensor([context + [MASK] * (k - 1)])
    rows = draft.lm.get_input_embeddings()(ids)
    if dependent:
        features = states(target, draft.spec.target_layers, context)
        for position in range(1, ids.shape[1]):
            feature = features[min(position, len(context) - 1) - 1]  # f[t-1]; a mask's is its anchor's
            rows[:, position] += draft.spec.scale * draft.projection(feature)
    return draft.lm(inputs_embeds=rows).logits[0, -k:]


# --- parallel -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dependent", [True, False])
@pytest.mark.parametrize("k", [1, 2, 6])
def test_proposals_follow_the_definition(target, dependent, k):
    """Fails if tokens are shifted, row 0 is dropped or fed a feature, or a mask gets its own feature."""
    draft = tiny_draft(target, projection=20.0)  # large, so that every feature matters
    drafter = parallel(target, draft, dependent)
    state = started(drafter, target)
    seen = []
    choosing = selector()
    take = choosing.parallel
    choosing.parallel = lambda logits, counts: seen.append((logits, counts)) or take(logits, counts)
    drafted = drafter.propose([DraftRequest(state, k)], choosing)
    [(ours, counts)] = seen
    expected = by_definition(target, draft, CONTEXT, k, dependent)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
    assert drafted.proposals[0].token_ids.tolist() == expected.argmax(-1).tolist()
    assert list(counts) == [k]
    assert drafted.passes == (len(CONTEXT) + k - 1,)


def fed_by(draft):
    """The (token ids, features) of each of the draft's passes from now on."""
    fed = []
    embed = draft.embed
    draft.embed = lambda ids, features: fed.append((ids, features)) or embed(ids, features)
    return fed


def test_row_zero_is_fed_with_the_zero_feature(target):
    draft = tiny_draft(target)
    fed = fed_by(draft)
    drafter = parallel(target, draft)
    propose(drafter, started(drafter, target), 3)
    expected = states(target, draft.spec.target_layers, CONTEXT)
    [(ids, features)] = fed
    assert ids.tolist() == [*CONTEXT, MASK, MASK]
    assert not features[0].any()
    torch.testing.assert_close(features[1:8], expected[:7])
    torch.testing.assert_close(features[8:], expected[6].expand(2, -1))


def test_masks_leave_no_trace(target):
    drafter = parallel(target, tiny_draft(target))
    state = started(drafter, target)
    length = len(CONTEXT)
    for k, emitted in [(6, 3), (1, 1), (4, 5), (6, 7)]:
        propose(drafter, state, k)
        assert (state.num_computed_tokens, state.pending, state.features) == (length, [], [])
        drafter.update(state, torch.randint(0, 60, (emitted,)).tolist(), torch.randn(emitted, 64))
        length += emitted
    propose(drafter, state, 2)
    assert state.num_computed_tokens == length


def test_cutting_trailing_masks_leaves_earlier_proposals_unchanged(target):
    drafter = parallel(target, tiny_draft(target))
    whole = propose(drafter, started(drafter, target), 6)
    assert len(set(whole)) > 1
    for k in range(1, 6):
        again = parallel(target, drafter.draft)
        assert propose(again, started(again, target), k) == whole[:k]


@pytest.mark.parametrize("emitted", [1, 2, 4, 7])
@pytest.mark.parametrize("dependent", [True, False])
def test_an_update_with_a_block_equals_starting_afresh_behind_it(target, emitted, dependent):
    draft = tiny_draft(target, projection=5.0)
    longer = CONTEXT + [31, 2, 50, 14, 14, 9, 27][:emitted]
    drafter = parallel(target, draft, dependent)
    state = started(drafter, target)
    propose(drafter, state, 6)
    drafter.update(state, longer[len(CONTEXT) :], shifted(drafter, target, longer, len(CONTEXT)))
    expected = by_definition(target, draft, longer, 6, dependent)
    assert propose(drafter, state, 6) == expected.argmax(-1).tolist()


def test_features_in_the_wrong_mode_are_refused(target):
    """Else TD would quietly draft as TI: the same text, fewer tokens accepted, no error."""
    for dependent, given in [(True, None), (False, torch.randn(2, 64))]:
        drafter = parallel(target, tiny_draft(target), dependent)
        with pytest.raises(ValueError, match="features"):
            drafter.update(drafter.open(POSITIONS), [1, 2], given)


# --- several sequences ----------------------------------------------------------------------------

TEXTS = [CONTEXT, [9], CONTEXT[::-1] + CONTEXT, [1, 2, 3]]


def drafters(target):
    draft = tiny_draft(target, projection=5.0)
    return {
        "td": lambda: parallel(target, draft),
        "ti": lambda: parallel(target, draft, False),
        "vsd": lambda: autoregressive(target, tiny_lm_draft()),
    }


@pytest.mark.parametrize("kind", ["td", "ti", "vsd"])
@pytest.mark.parametrize("ks", [(3, 5, 1, 4), (2, 0, 4, 0), (0, 0, 0, 1)])
def test_each_sequence_gets_what_it_would_get_alone(target, kind, ks):
    """Each with its own k; a sequence that asks for nothing now is no worse off later."""
    new = drafters(target)[kind]
    together, expected = new(), []
    opened = [started(together, target, text) for text in TEXTS]
    for text, k in zip(TEXTS, ks, strict=True):
        alone = new()
        expected.append(propose(alone, started(alone, target, text), k) if k else [])
    assert propose_all(together, [DraftRequest(state, k) for state, k in zip(opened, ks, strict=True)]) == expected
    for number, text in enumerate(TEXTS):
        longer = [*text, 40]
        together.update(opened[number], [40], shifted(together, target, longer, len(text)))
        alone = new()
        expected[number] = propose(alone, started(alone, target, longer), 3)
    assert propose_all(together, [DraftRequest(state, 3) for state in reversed(opened)]) == expected[::-1]


@pytest.mark.parametrize("kind", ["td", "ti", "vsd"])
def test_passes_have_the_rows_that_they_are_said_to_have(target, kind):
    """The adaptive draft length learns times by them."""
    drafter = drafters(target)[kind]()
    fed = fed_by(drafter.draft)
    requests = [DraftRequest(started(drafter, target, text), k) for text, k in zip(TEXTS, (3, 0, 1, 2), strict=True)]
    drafted = drafter.propose(requests, selector(4))
    assert drafted.passes == tuple(len(ids) for ids, _ in fed)
    assert drafted.passes == ((27, 2, 1) if kind == "vsd" else (27 + 2 + 0 + 1,))


@pytest.mark.parametrize("kind", ["td", "ti", "vsd"])
def test_nothing_asked_for_costs_no_pass_until_much_is_pending(kind):
    """Features that nobody reads would pile up; a pass for each of them would cost what k = 0 is to save."""
    target = tiny_target(context=1024)
    if kind == "vsd":
        drafter = autoregressive(target, tiny_lm_draft(context=1024), 1024)
    else:
        drafter = parallel(target, tiny_draft(target), kind == "td", 1024)
    state = drafter.open(MOST_PENDING + 8)
    features = torch.randn(MOST_PENDING, 64) if kind == "td" else None
    fed = fed_by(drafter.draft)
    drafter.update(state, [7] * (MOST_PENDING - 1), None if features is None else features[1:])
    assert drafter.propose([DraftRequest(state, 0)], selector()).passes == () and not fed
    drafter.update(state, [7], None if features is None else features[:1])
    assert propose(drafter, state, 0) == []
    assert [len(ids) for ids, _ in fed] == [MOST_PENDING]
    assert (state.num_computed_tokens, state.pending, state.features) == (MOST_PENDING, [], [])


# --- one by one -----------------------------------------------------------------------------------


@pytest.mark.parametrize("accepted", [0, 1, 3, 4])
def test_autoregressive_cache_holds_what_was_accepted_and_no_more(target, accepted):
    """With all 4 accepted the cache lacks the last guess, which was never fed;
    then two tokens are pending."""
    drafter = autoregressive(target, tiny_lm_draft())
    state = started(drafter, target)
    text = CONTEXT + propose(drafter, state, 4)[:accepted] + [33]
    drafter.update(state, text[len(CONTEXT) :], None)
    assert len(state.pending) == (2 if accepted == 4 else 1)
    fresh = autoregressive(target, drafter.draft)
    assert propose(drafter, state, 4) == propose(fresh, started(fresh, target, text), 4)
    assert (state.num_computed_tokens, state.num_guessed_tokens) == (len(text), 3)


def test_autoregressive_proposes_its_models_greedy_text(target):
    drafter = autoregressive(target, perfect_draft(target))
    text = list(CONTEXT)
    for _ in range(5):
        text.append(int(target.forward(torch.tensor([text])).logits[0, -1].argmax()))
    assert propose(drafter, started(drafter, target), 5) == text[len(CONTEXT) :]


# --- limits ---------------------------------------------------------------------------------------


def test_limit_ends_with_the_drafts_own_context_or_training(target):
    drafter = parallel(target, pard_draft(target, context=20), dependent=False)
    # The anchor sits at length - 1, and the last of k slots at length + k - 2, which must be below 20.
    assert [drafter.limit(DraftState(), length) for length in (1, 15, 16, 20, 21, 40)] == [6, 6, 5, 1, 0, 0]
    lm = autoregressive(target, tiny_lm_draft(context=20))
    assert [lm.limit(DraftState(), length) for length in (1, 20, 21, 40)] == [20, 1, 0, 0]
    assert PlainDrafter(target.device).limit(DraftState(), 1) == 0


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_text_that_outgrows_the_draft_is_read_no_further(target, one_by_one):
    """Up to its last position it drafts; behind it nothing piles up and nothing
    is written past its memory."""
    if one_by_one:
        drafter = autoregressive(target, tiny_lm_draft(context=10))
    else:
        drafter = parallel(target, pard_draft(target, context=10), dependent=False)
    state = started(drafter, target)
    assert state.region.size == 10
    assert len(propose(drafter, state, drafter.limit(state, 8))) == 3
    drafter.update(state, [4, 4], None)
    assert not state.closed and len(propose(drafter, state, drafter.limit(state, 10))) == 1
    for block in ([4], [4, 4, 4]):
        drafter.update(state, block, None)
        assert state.closed and not state.pending


@pytest.mark.parametrize("kind", ["td", "vsd"])
def test_memory_is_given_out_and_given_back(target, kind):
    drafter = drafters(target)[kind]()
    opened = [drafter.open(POSITIONS) for _ in range(4)]
    assert drafter.open(1) is None
    drafter.close(opened[2])
    assert drafter.open(POSITIONS).region == opened[2].region


def test_ids_that_only_the_target_knows_are_read_as_others_and_ids_that_only_the_draft_knows_are_not_proposed(target):
    for vocab in (50, 80):
        draft = tiny_lm_draft(vocab=vocab)
        with torch.no_grad():
            draft.lm.get_output_embeddings().weight[61:] *= 100  # would be proposed if they could
        drafter = autoregressive(target, draft)
        assert max(propose(drafter, started(drafter, target, [60, 59, 60]), 4)) < min(vocab, 61)
