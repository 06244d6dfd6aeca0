"""`predict` against cycles that are run one by one, and against laws that are known."""

from itertools import pairwise

import pytest

from pard2.bench.plan import Configuration
from pard2.bench.predict.counts import count
from pard2.bench.predict.predictions import Asked, Predictions
from pard2.bench.predict.predictor import Predictor
from pard2.errors import Pard2Error
from predict_worlds import DRAFT, OTHER, RATES, TARGET, results_of, simulated


def ar(batch=1):
    return Configuration(method="ar", batch_size=batch, draft_tokens=0, temperature=0.0)


def td(k, batch=1, method="pard2-td", tree=0):
    return Configuration(method=method, batch_size=batch, draft_tokens=k, temperature=0.0, tree=tree)


def predictor(results):
    return Predictor(results.name, count(results.measurements), results.plan)


def lines(found):
    (group,) = found.groups.values()
    return {(one.configuration.batch_size, one.configuration.draft_tokens, one.configuration.tree): one for one in group}


@pytest.mark.parametrize("method", ["pard2-td", "vsd"])
@pytest.mark.parametrize(("k", "batch"), [(1, 1), (3, 1), (5, 1), (3, 4), (2, 4), (8, 2)])
def test_a_prediction_is_not_what_cycles_run_one_by_one_give(method, k, batch):
    """Acceptance from another K, times from other rows; what is left is chance, of some thousand cycles."""
    known = results_of(*(simulated(one, seed=i) for i, one in enumerate((ar(), ar(4), ar(16), td(8, 1, method), td(8, 4, method)))))
    true = simulated(td(k, batch, method), cycles=2000, seed=99)
    tokens, seconds = sum(one.totals.tokens for one in true), sum(one.totals.decode_seconds for one in true)
    found = predictor(known).predict("gsm8k", td(k, batch, method))
    assert found.tokens_per_second == pytest.approx(tokens / seconds, rel=0.03)
    chances = [1.0]
    for rate in RATES[:k]:
        chances.append(chances[-1] * rate)
    assert found.length.value == pytest.approx(sum(chances), rel=0.025)


def test_the_formula_is_another_one():
    """Tokens and seconds put together by hand."""
    known = results_of(simulated(ar()), simulated(ar(8)), simulated(td(4)), simulated(td(4, 4)))
    counts = {one.configuration: one for one in count(known.measurements)}
    two = 1 + sum(sum(counts[td(4, b)].accepted_at[:2]) for b in (1, 4)) / sum(counts[td(4, b)].sequence_cycles for b in (1, 4))
    found = predictor(known).predict("gsm8k", td(2, 2))
    seconds = DRAFT(2 * (two + 1)) + TARGET(2 * 3) + OTHER(2)
    assert found.length.value == pytest.approx(two) and found.seconds.all == pytest.approx(seconds, rel=1e-3)
    assert found.tokens_per_second == pytest.approx(2 * two / seconds, rel=1e-3)


@pytest.mark.parametrize("method", ["pard2-td", "vsd"])
def test_a_measured_configuration_does_not_come_out_as_it_was(method):
    known = results_of(*(simulated(one, seed=i) for i, one in enumerate((ar(), ar(4), td(2, 1, method), td(7, 1, method), td(5, 4, method)))))
    for one in count(known.measurements):
        found = predictor(known).predict("gsm8k", one.configuration)
        assert found.length.value == pytest.approx(one.acceptance_length)
        # A sequential draft's passes are of two sizes, of which the mean alone is known.
        assert found.tokens_per_second == pytest.approx(one.totals.tokens_per_second, rel=1e-9 if method == "pard2-td" else 2e-3)


def test_the_speed_of_chunks_that_end_one_by_one_is_that_of_full_batches():
    """At batch 4 three sequences run on average; the same configuration must come out, others likewise."""
    run = simulated(td(5, 4), seed=1, running=3)
    known = results_of(simulated(ar()), simulated(ar(4)), simulated(td(3)), run)
    found, one = predictor(known).predict("gsm8k", td(5, 4)), count(run)[0]
    assert one.sequences == 3 and found.tokens_per_second == pytest.approx(one.totals.tokens_per_second, rel=1e-9)
    assert predictor(known).predict("gsm8k", td(2, 4)).seconds.verify == pytest.approx(TARGET(3 * 3), rel=1e-6)


def test_left_out_ones_of_a_linear_law_are_missed():
    known = results_of(
        *(simulated(one, cycles=1500, seed=5) for one in (ar(), ar(4), td(2), td(4), td(8), td(2, 4), td(4, 4), td(8, 4), td(5, 8), ar(8)))
    )
    found = Predictions(known, Asked())
    assert found.left_out.impossible == 1  # nothing else went as far as batch 8
    assert len(found.left_out.errors) == 6 and found.left_out.own_acceptance == 2  # no other K tells of 8
    assert max(map(abs, found.left_out.errors)) < 0.02
    own = [one.measured for one in lines(found).values() if one.measured and one.measured.own_acceptance]
    assert len(own) == 2 and max(abs(one.error) for one in own) < 0.005


def test_an_error_is_told_of_a_prediction_that_saw_the_measurement():
    """One configuration took twice as long as the law says: the others do not know of it."""
    slow = simulated(td(4), pace=2.0, seed=5)
    known = results_of(*(simulated(one, seed=5) for one in (ar(), ar(16), td(2), td(8))), slow)
    one = lines(Predictions(known, Asked()))[1, 4, 0]
    assert one.measured.error == pytest.approx(1.0, abs=0.05)  # twice as fast as it was
    assert one.speed.tokens_per_second < 1.6 * one.measured.tokens_per_second  # with itself among the points


def test_a_machine_that_slows_down_between_suites_changes_the_predicted_speedup():
    fast = [simulated(one, "a", seed=3) for one in (ar(), td(4))]
    slow = [simulated(one, "b", seed=3, pace=3.0) for one in (ar(), td(4))]
    found = Predictions(results_of(*fast, *slow), Asked())
    (one, *_), (other, *_) = ([each for each in group if each.configuration.draft_tokens == 4] for group in found.groups.values())
    assert one.speedup == pytest.approx(other.speedup) and one.speed.tokens_per_second == pytest.approx(3 * other.speed.tokens_per_second)
    assert max(map(abs, found.left_out.errors)) < 1e-6 and found.left_out.own_acceptance == 2


def test_more_proposals_shorten_the_cycle_or_the_acceptance_length():
    known = results_of(simulated(ar()), simulated(ar(4)), simulated(td(8)), simulated(td(8, 4)))
    for batch in (1, 2, 4):
        found = [predictor(known).predict("gsm8k", td(k, batch)) for k in range(1, 9)]
        for fewer, more in pairwise(found):
            assert more.length.value >= fewer.length.value and more.seconds.all > fewer.seconds.all
            assert more.seconds.draft >= fewer.seconds.draft and more.seconds.verify >= fewer.seconds.verify


def test_the_best_is_not_the_fastest():
    known = results_of(simulated(ar()), simulated(ar(32)), simulated(td(8)), simulated(td(8, 4)))
    found = lines(Predictions(known, Asked(batch_sizes=[1, 4])))
    for batch in (1, 4):
        here = [one for (size, _, _), one in found.items() if size == batch]
        (best,) = (one for one in here if one.best)
        assert best.speed.tokens_per_second == max(one.speed.tokens_per_second for one in here) and best.speedup > 1
        assert best.speedup == pytest.approx(best.speed.tokens_per_second / found[batch, 0, 0].speed.tokens_per_second)


def chosen(chance):
    """Easy cycles propose 6, hard ones 1, hopeless ones nothing: what `auto` aims at."""
    kind = chance.random()
    return (6, (0.95,) * 6) if kind < 0.3 else (1, (0.3,) * 6) if kind < 0.8 else (0, (0.05,) * 6)


def test_what_auto_chose_is_taken_for_the_acceptance_of_all_cycles():
    """The hard cycles did not say what they would accept further on; bounds can be told, and they hold."""
    known = results_of(simulated(ar()), simulated(td("auto"), lengths=chosen, seed=2))
    found = predictor(known).length("gsm8k", td(4))
    true = sum(share * sum(rate**i for i in range(5)) for share, rate in ((0.3, 0.95), (0.5, 0.3), (0.2, 0.05)))
    assert found.at_least < true < found.value and found.interval is None
    lengths = [predictor(known).length("gsm8k", td(k)).value for k in range(1, 7)]
    gains = [more - fewer for fewer, more in pairwise([1.0, *lengths])]
    assert min(gains) >= 0 and max(b - a for a, b in pairwise(gains)) < 1e-9  # no position gains more than the one before
    # A fixed K tells of all cycles, however short of auto's it is.
    known = results_of(simulated(ar()), simulated(td("auto"), lengths=chosen, seed=2), simulated(td(2)))
    assert predictor(known).length("gsm8k", td(2)).at_least is None and predictor(known).length("gsm8k", td(3)).at_least is not None


def test_what_auto_did_does_not_come_out_as_it_was():
    known = results_of(simulated(ar()), simulated(ar(16)), simulated(td("auto"), lengths=chosen), simulated(td("auto", 4), lengths=chosen))
    found = lines(Predictions(known, Asked()))
    for batch in (1, 4):
        one = found[batch, "auto", 0]
        assert one.speed.tokens_per_second == pytest.approx(one.measured.tokens_per_second, rel=1e-6) and not one.best
        assert one.measured.own_acceptance and abs(one.measured.error) < 0.02


def test_a_tree_at_another_batch_size_accepts_something_else():
    """Its acceptance length is that of the tree, not of the chain of its depth; its rows are its nodes."""
    tree = simulated(td(3, tree=12), seed=8)
    one = count(tree)[0]
    known = results_of(simulated(ar()), simulated(ar(64)), simulated(td(5)), simulated(td(5, 8)), tree)
    found = lines(Predictions(known, Asked(batch_sizes=[4], draft_tokens=[3], trees=[12])))
    assert set(found) == {(4, 0, 0), (4, 3, 12)} and found[4, 3, 12].speed.length.value == pytest.approx(one.acceptance_length)
    assert predictor(known).predict("gsm8k", td(3, 4, tree=12)).seconds.verify == pytest.approx(TARGET(4 * 13), rel=0.1)
    with pytest.raises(Pard2Error, match="trees of 12 of pard2-td on gsm8k"):
        Predictions(known, Asked(trees=[13]))


def test_proposals_that_are_copies_are_counted_as_k_rows():
    """`ngram` proposes in some cycles only, and costs no passes of a draft."""
    copies = simulated(td(4, method="ngram"), lengths=lambda chance: (4 if chance.random() < 0.25 else 0, RATES), seed=4)
    known = results_of(simulated(ar()), simulated(ar(8)), copies)
    found = predictor(known).predict("gsm8k", td(2, method="ngram"))
    one = count(copies)[0]
    assert found.length.value == pytest.approx(1 + sum(one.accepted_at[:2]) / one.sequence_cycles) and found.length.value < 1.5
    assert found.seconds.verify == pytest.approx(TARGET(1 + 2 * 0.25), rel=0.01) and found.seconds.draft == 0


def test_an_interval_comes_from_the_prompts():
    known = results_of(simulated(ar()), simulated(td(4), cycles=30, prompts=20))
    found = predictor(known).length("gsm8k", td(3))
    assert found.interval[0] < found.value < found.interval[1] and 0.1 < found.interval[1] - found.interval[0] < 0.6
    alone = results_of(simulated(ar(), prompts=1), simulated(td(4), prompts=1))
    assert predictor(alone).length("gsm8k", td(3)).interval is None


@pytest.fixture(scope="module")
def known():
    return results_of(simulated(ar()), simulated(ar(4)), simulated(td(4)), simulated(td(4, 4)))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (Asked(draft_tokens=[2, 5]), "`draft_tokens` 5: r.json tells of pard2-td on gsm8k up to K 4; ask for less"),
        (Asked(suites=["mt_bench"]), "`suite` 'mt_bench' is not in r.json; it holds gsm8k"),
        (Asked(methods=["vsd"]), "`method` 'vsd' is not in r.json; it holds pard2-td"),
        (Asked(methods=["ar"]), "`method` 'ar' is not in r.json; it holds pard2-td"),
        (Asked(drafts=["new"]), "`draft` 'new' is not in r.json; its only draft has no name"),
        (Asked(trees=[8]), "`tree` 8: r.json holds no trees of pard2-td on gsm8k"),
        (
            Asked(batch_sizes=[4, 30]),
            "ar on gsm8k, batch 30, K 0, needs larger passes of the target than r.json has times of: up to 20 rows, which tell",
        ),
        (Asked(batch_sizes=[6]), "up to 4 sequences, which tell of 5 at most, not of 6"),
    ],
)
def test_what_cannot_be_known_is_predicted(known, asked, says):
    with pytest.raises(Pard2Error, match=says.replace("(", r"\(")):
        Predictions(known, asked)


def test_what_is_too_far_is_left_out_in_silence():
    known = results_of(simulated(ar()), simulated(ar(4)), simulated(td(4)), simulated(td(2, 4)))
    found = Predictions(known, Asked(batch_sizes=[4]))
    assert set(lines(found)) == {(4, 0, 0), (4, 1, 0), (4, 2, 0)}
    ((said,),) = found.skipped.values()
    assert said.startswith("pard2-td on gsm8k, batch 4, K 3, needs larger passes of the target") and not said.endswith("more")
    with pytest.raises(Pard2Error, match="batch 4, K 3, needs larger passes"):  # where it is asked for by name
        Predictions(known, Asked(batch_sizes=[4], draft_tokens=[1, 3]))


def test_a_file_that_tells_nothing_of_a_draft_is_read(known):
    with pytest.raises(Pard2Error, match="holds plain decoding alone"):
        Predictions(results_of(simulated(ar())), Asked())
    with pytest.raises(Pard2Error, match="measured with `--ngram-first`"):
        Predictions(results_of(simulated(ar()), simulated(td(4)), ngrams={"ngram_first": 8}), Asked())
    Predictions(results_of(simulated(ar()), simulated(td(4)), ngrams={"ngram_first": None}), Asked())


def test_a_tree_whose_depth_auto_chose_does_not_come_out_as_it_was():
    """It counts as of its mean depth where nearly all cycles proposed one; else nothing is known of it."""
    tree = simulated(td("auto", tree=3), lengths=lambda chance: (3, RATES))
    known = results_of(simulated(ar()), simulated(ar(16)), simulated(td(4, 4)), tree)
    found = lines(Predictions(known, Asked(batch_sizes=[1, 2])))
    one = found[1, "auto", 3]
    assert one.speed.tokens_per_second == pytest.approx(one.measured.tokens_per_second, rel=1e-6)
    assert found[2, "auto", 3].speed.seconds.verify == pytest.approx(TARGET(2 * 4), rel=1e-6)
    known = results_of(simulated(ar()), simulated(ar(16)), simulated(td("auto", tree=3), lengths=chosen))
    with pytest.raises(Pard2Error, match="trees that `auto` left out in some cycles"):
        Predictions(known, Asked(batch_sizes=[2]))


def test_a_tree_of_a_sequential_draft_does_not_come_out_as_it_was():
    known = results_of(simulated(ar()), simulated(ar(16)), simulated(td(3, method="eagle3", tree=3)), tree_top_k=4)
    one = lines(Predictions(known, Asked()))[1, 3, 3]
    assert one.speed.tokens_per_second == pytest.approx(one.measured.tokens_per_second, rel=1e-6)
