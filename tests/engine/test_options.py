"""What an engine is asked for: one table of methods, and options that are refused in one
place, by their own names."""

import ast
from pathlib import Path

import pytest

import pard2
from pard2.engine.engine import Engine
from pard2.engine.methods import EAGLE3, METHODS, PLAIN, choose_method, methods_for
from pard2.engine.options import EngineOptions
from pard2.errors import Pard2Error
from pard2.models.draft_kind import DraftKind
from tiny import pard_draft, tiny_draft, tiny_lm_draft, tiny_target
from tiny_eagle3 import tiny_eagle3


def test_no_other_place_lists_methods():
    """A second list is what a new method is forgotten in.

    "pard" and "eagle3" are also what checkpoints call themselves; these and "ar" are what a run trains, whose
    table is `config_methods.py`.
    """
    source = Path(pard2.__file__).parent
    training = [source / "config.py", source / "config_methods.py", source / "train" / "initial.py"]
    for path in source.rglob("*.py"):
        if path != source / "engine" / "methods.py":
            words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
            assert not words & (set(METHODS) - {"pard", EAGLE3} - ({PLAIN} if path in training else set())), path


def test_a_kind_of_draft_has_its_methods_and_the_first_is_the_default():
    target = tiny_target()
    pard2_draft = tiny_draft(target)
    drafts = {"vsd": tiny_lm_draft(), "pard": pard_draft(target), "pard2-td": pard2_draft, "eagle3": tiny_eagle3(target)}
    kinds = {name: draft.kind for name, draft in drafts.items()}
    pard2_draft.projection = None
    kinds["pard2-ti"] = pard2_draft.kind
    assert {name: methods_for(kind) for name, kind in kinds.items()} == {
        "vsd": ["vsd"],
        "pard": ["pard"],
        "pard2-td": ["pard2-td", "pard2-ti"],
        "pard2-ti": ["pard2-ti"],
        "eagle3": ["eagle3"],
    }
    assert methods_for(DraftKind.NONE) == [PLAIN] == [choose_method(None, None)]


@pytest.mark.parametrize("method", METHODS)
def test_the_table_says_of_a_drafter_what_the_drafter_does(method):
    target, needs = tiny_target(), METHODS[method].needs
    draft = tiny_eagle3(target) if needs is DraftKind.EAGLE3 else tiny_draft(target)
    drafter = METHODS[method].new_drafter(target, draft, 64, EngineOptions(method=method))
    assert bool(drafter.feature_layers) == (needs in (DraftKind.PROJECTED, DraftKind.EAGLE3))
    assert METHODS[method].loads_projection == (needs is DraftKind.PROJECTED)
    assert Engine(target, draft, method).method == method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tree": -1}, "^`tree` -1: give a number of nodes, 0 for chains, or 'auto'$"),
        ({"tree": 2.0}, "^`tree` 2.0: "),
        ({"tree": True}, "^`tree` True: "),
        ({"tree": "many"}, "^`tree` 'many': "),
        ({"tree": None}, "^`tree` None: "),
        ({"tree": 8, "draft_sampling": "sampled"}, "use `draft_sampling` greedy and `verification` token, or `tree` 0$"),
        ({"tree": "auto", "draft_sampling": "sampled", "verification": "block"}, "use `draft_sampling` greedy and `verification` token"),
        ({"tree": 8, "method": "ar"}, "^`tree` 8: `method` ar proposes no trees; use pard, pard2-ti, pard2-td, eagle3, or `tree` 0$"),
        ({"tree": "auto", "method": "vsd"}, "^`tree` auto: `method` vsd proposes no trees"),
        (
            {"tree": 8, "cache_tokens": 8},
            "^a tree of 8 nodes does not fit the cache of 8 positions; give a smaller `tree` or a larger `cache_tokens`$",
        ),
        ({"cuda_graphs": "yes"}, "^`cuda_graphs` yes: "),
        ({"method": []}, "^`method` \\[\\] is not one of"),
    ],
)
def test_options_that_mean_nothing(options, message):
    with pytest.raises(Pard2Error, match=message):
        EngineOptions(**options)
    with pytest.raises(Pard2Error, match=message):
        Engine.from_pretrained("/no/such/model", "/no/such/draft", **options)


def test_trees_need_a_draft_that_can_propose_them():
    target = tiny_target()
    with pytest.raises(Pard2Error, match="`method` vsd proposes no trees"):
        Engine(target, tiny_lm_draft(), tree=8)
    with pytest.raises(Pard2Error, match="`method` ar proposes no trees"):
        Engine.from_pretrained("/no/such/model", tree="auto")
    with pytest.raises(Pard2Error, match="a tree of 1000000 nodes does not fit the cache"):  # of the size that there is memory for
        Engine(target, tiny_draft(target), tree=10**6)
    assert Engine(target, tiny_draft(target), tree="auto").options.tree == "auto"
    assert EngineOptions(tree=0, draft_sampling="sampled", verification="block").tree == 0


def test_an_option_of_no_such_name_is_a_mistake_of_the_caller():
    with pytest.raises(TypeError, match="batch_size"):
        Engine(tiny_target(), batch_size=3)
    with pytest.raises(TypeError, match="batch_size"):
        Engine.from_pretrained("/no/such/model", batch_size=3)


def test_an_engine_keeps_what_it_was_asked_for_with_the_method_settled():
    target = tiny_target()
    engine = Engine(target, tiny_draft(target), draft_tokens=3, max_batch=2, cache_tokens=90)
    assert engine.options == EngineOptions(method="pard2-td", draft_tokens=3, max_batch=2, cache_tokens=90)
