"""`model.generate` with a draft says what it says without, in every respect that a caller can see."""

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
import transformers

import pard2
from engines import new_draft
from pard2.checkpoints.pruning import cut_draft
from pard2.checkpoints.write import save_draft
from pard2.engine.processors import TokenCounts, probabilities
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.transformers import kept as kept_module
from pard2.transformers.request import read_request
from pard2.verify.greedy import gaps_to_first_choice
from tiny import MASK, random_prompts, tiny_draft, tiny_lm_draft, tiny_model, tiny_target

NEW = 40


def prompts(count: int = 3) -> list[torch.Tensor]:
    return [torch.tensor([prompt]) for prompt in random_prompts(count, seed=3)]


def drafted(model: Any, ids: torch.Tensor, **arguments: Any) -> Any:
    # A fixed number of proposals: "auto" may find that none pay on models this small.
    return model.generate(ids, custom_generate=pard2.transformers.generate, **({"max_new_tokens": NEW, "draft_tokens": 5} | arguments))


class Recorder(transformers.generation.streamers.BaseStreamer):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.seen.append((value.tolist(), str(value.device)))

    def end(self) -> None:
        self.seen.append("end")


class Criterion(transformers.StoppingCriteria):
    """Ends a long enough text whose last tokens sum up to a multiple of 7, and notes what it is asked."""

    def __init__(self, least: int) -> None:
        self.least = least
        self.asked: list[list[int]] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.asked.append(input_ids[0].tolist())
        ends = input_ids.shape[1] >= self.least and int(input_ids[0, -2:].sum()) % 7 == 0
        return torch.tensor([ends])


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


@pytest.fixture(scope="module")
def td(target: Target) -> Any:
    return tiny_draft(target)


@pytest.mark.parametrize("method", ["ngram", "vsd", "pard", "pard2-ti", "pard2-td", "eagle3"])
def test_greedy_text_is_that_of_plain_generate(method):
    model = tiny_model()
    draft = Draft(tiny_model(), None) if method == "vsd" else new_draft(method, Target(model))
    proposed = accepted = 0
    for ids in prompts():
        expected = tiny_model().generate(ids, max_new_tokens=NEW, do_sample=False)
        found = drafted(model, ids, draft=draft, method=method, return_dict_in_generate=True)
        assert type(found).__name__ == "GenerateDecoderOnlyOutput" and torch.equal(found.sequences, expected)
        assert found.stats.cycles + found.stats.accepted + 1 == NEW
        proposed, accepted = proposed + found.stats.proposed, accepted + found.stats.accepted
    assert proposed > 10 and (accepted > 2 or method == "pard"), "nothing was drafted"


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.7},
        {"sequence_bias": {(5,): 6.0, (9,): -8.0}},
        {"eos_token_id": [7, 11, 23, 30, 41], "pad_token_id": 60},
        {"eos_token_id": [7, 11, 23, 30, 41], "pad_token_id": 60, "min_new_tokens": 20},
        {"eos_token_id": [7, 11, 23, 30, 41], "pad_token_id": 60, "min_length": 30, "max_length": 50, "max_new_tokens": None},
        {"tree": 12},
        {"draft_tokens": "auto"},
        {"use_cache": False, "renormalize_logits": True},
    ],
    ids=str,
)
def test_settings_are_carried_out(target, td, settings):
    own = {name: value for name, value in settings.items() if name not in ("tree", "draft_tokens")}
    lengths = set()
    for ids in prompts():
        expected = tiny_model().generate(ids, **({"max_new_tokens": NEW} | own))
        lengths.add(expected.shape[1] - ids.shape[1])
        assert torch.equal(drafted(target.model, ids, draft=td, **settings), expected)
    assert ("eos_token_id" in settings) == (min(lengths) < NEW), "no text ends early"


def test_an_architecture_that_runs_by_its_own_code():
    model = tiny_model("gemma2", layers=4)
    draft = tiny_draft(Target(model))
    for ids in prompts(2):
        expected = tiny_model("gemma2", layers=4).generate(ids, max_new_tokens=NEW)
        assert torch.equal(drafted(model, ids, draft=draft), expected)


def test_criteria_and_streamer_see_what_they_see_without_a_draft(target, td):
    """A criterion is asked after each token, in order, and ends a text in the middle of an accepted block."""
    cut = 0
    for ids in prompts(6):
        seen = []
        for draft in (None, td):
            criterion, streamer = Criterion(ids.shape[1] + 6), Recorder()
            extra: dict[str, Any] = {} if draft is None else {"custom_generate": pard2.transformers.generate, "draft": draft, "draft_tokens": 6}
            model = target.model if draft is not None else tiny_model()
            out = model.generate(ids, max_new_tokens=NEW, stopping_criteria=[criterion], streamer=streamer, return_dict_in_generate=True, **extra)
            seen.append((out.sequences.tolist(), criterion.asked, streamer.seen))
        assert seen[0] == seen[1] and seen[1][2][-1] == "end" and len(seen[1][1]) < NEW
        stats = out.stats
        assert stats.cycles + stats.accepted + 1 == len(seen[1][1])
        cut += stats.proposed_per_cycle[-1] == stats.accepted_per_cycle[-1] < 5
    assert cut, "no text ended inside of a block"


def test_a_streamer_that_fails_frees_the_engine(target, td):
    class Failing(Recorder):
        def put(self, value: torch.Tensor) -> None:
            if len(self.seen) > 2:
                raise RuntimeError("gone")
            super().put(value)

    (ids,) = prompts(1)
    with pytest.raises(RuntimeError, match="gone"):
        drafted(target.model, ids, draft=td, streamer=Failing())
    assert vars(target.model)["_pard2_kept"]._engine.idle
    assert torch.equal(drafted(target.model, ids, draft=td), tiny_model().generate(ids, max_new_tokens=NEW))


def test_a_wrapper_between_generate_and_us(target, td):
    """The streamer is found behind it, and the arguments it adds arrive."""
    streamer, (ids,) = Recorder(), prompts(1)
    target.model.generate(
        ids, max_new_tokens=5, streamer=streamer, custom_generate=lambda model, ids, **more: pard2.transformers.generate(model, ids, draft=td, **more)
    )
    assert len(streamer.seen) == 1 + 5 + 1


SAMPLED = [
    {},
    {"top_k": 0},
    {"temperature": 0.6, "top_k": 7},
    {"temperature": 1.4, "top_p": 0.8, "top_k": None},
    {"min_p": 0.05, "top_k": 0},
    {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3, "sequence_bias": {(4,): 3.0}},
    {"eos_token_id": [3, 8], "min_new_tokens": 9, "top_k": 0},
]


@pytest.mark.parametrize("settings", SAMPLED, ids=str)
def test_the_distribution_is_that_of_the_processors(target, settings):
    """To the last place that float32 has, of all tokens: what is mapped wrongly, or forgotten, shows."""
    found: dict[str, Any] = {}

    def spy(model: Any, input_ids: torch.Tensor, **prepared: Any) -> torch.Tensor:
        found.update(prepared)
        return input_ids

    (ids,) = prompts(1)
    target.model.generate(ids, do_sample=True, max_new_tokens=NEW, custom_generate=spy, **settings)
    params = read_request(target.model, ids, found, target).params
    logits = target.forward(ids, num_logits=1).logits[0]
    expected = found["logits_processor"](ids, logits.clone().float()).softmax(-1)
    counts, barred = TokenCounts(ids[0].tolist(), target.vocab_size), None
    if params.min_tokens:
        assert params.min_tokens == 9 and params.stop_token_ids == (3, 8)
        logits[:, [3, 8]] = -torch.inf
    ours = probabilities(logits, params, counts, torch.empty(0, dtype=torch.long), None, barred)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


def test_samples_are_distributed_as_the_target_says(target, td):
    """Two tokens, the second of which is mostly proposed: chi-square over all pairs."""
    (ids,), settings = prompts(1), {"do_sample": True, "top_k": 3, "temperature": 2.0}
    transformers.set_seed(5)
    draws = [tuple(drafted(target.model, ids, draft=td, max_new_tokens=3, **settings)[0, -3:-1].tolist()) for _ in range(400)]
    assert len(set(draws)) > 3
    expected = {}
    for first, p in _three_best(target, ids).items():
        expected |= {(first, second): p * q for second, q in _three_best(target, torch.cat([ids, torch.tensor([[first]])], 1)).items()}
    assert set(draws) <= set(expected)
    chi = sum((draws.count(pair) - 400 * p) ** 2 / (400 * p) for pair, p in expected.items())
    assert chi < 32, chi  # 8 degrees of freedom: one in ten thousand is above


def _three_best(target: Target, ids: torch.Tensor) -> dict[int, float]:
    values, tokens = (target.forward(ids, num_logits=1).logits[0, -1] / 2.0).topk(3)
    return dict(zip(tokens.tolist(), values.softmax(-1).tolist(), strict=True))


def test_a_seed_set_in_torch_fixes_the_text(target, td):
    (ids,) = prompts(1)
    texts = []
    for seed in (1, 1, 2):
        transformers.set_seed(seed)
        texts.append(drafted(target.model, ids, draft=td, do_sample=True).tolist())
    assert texts[0] == texts[1] != texts[2]
    transformers.set_seed(1)
    drafted(target.model, ids, draft=td)  # greedy draws nothing
    assert drafted(target.model, ids, draft=td, do_sample=True).tolist() == texts[0]


# --- what stays with the model ----------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A model and the directory of a draft for it."""
    model = tiny_model()
    save_draft(tiny_draft(Target(tiny_model())), tmp_path / "draft")
    return model, tmp_path / "draft"


def test_a_draft_by_its_name_is_loaded_once(saved, monkeypatch):
    model, directory = saved
    loads, load_draft = [], kept_module.load_draft
    monkeypatch.setattr(kept_module, "load_draft", lambda *arguments: loads.append(arguments[0]) or load_draft(*arguments))
    (ids,) = prompts(1)
    expected = tiny_model().generate(ids, max_new_tokens=NEW)
    for draft in (directory, str(directory), directory):
        out = drafted(model, ids, draft=draft, return_dict_in_generate=True)
        assert torch.equal(out.sequences, expected) and out.stats.proposed
    engine = vars(model)["_pard2_kept"]._engine
    assert loads == [str(directory)] and engine.method == "pard2-td"
    drafted(model, ids, draft=directory)
    assert vars(model)["_pard2_kept"]._engine is engine
    drafted(model, ids, draft=directory, method="pard2-ti")
    assert len(loads) == 2 and vars(model)["_pard2_kept"]._engine.method == "pard2-ti"
    pard2.transformers.forget(model)
    drafted(model, ids, draft=directory)
    assert len(loads) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_draft_that_borrows_the_models_tables(tmp_path, dtype):
    """Whatever form a CPU gives the draft's own layers, the model's stay what they were."""
    shared = cut_draft(tiny_target(), [0, 1], MASK, 6, (-1, -2), shared_vocabulary=True, vocabulary=torch.arange(0, 61, 2))
    save_draft(shared.eval().requires_grad_(False), tmp_path / "draft", vocabulary=False)
    model, (ids,) = tiny_model().to(dtype), prompts(1)
    kinds = [type(module) for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    out = drafted(model, ids, draft=tmp_path / "draft", return_dict_in_generate=True)
    assert out.stats.proposed and [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert dtype == torch.bfloat16 or torch.equal(out.sequences, tiny_model().generate(ids, max_new_tokens=NEW))


@pytest.mark.parametrize("method", ["vsd", "pard", "pard2-ti", "pard2-td", "eagle3"])
def test_half_precision_with_a_draft_in_whatever_form(tmp_path, method):
    """Of a model that stays as it was loaded: near-ties apart, its text is that of plain `generate`."""
    draft = new_draft(method, tiny_target())
    if method == "vsd":
        draft.lm.save_pretrained(tmp_path)
    else:
        save_draft(draft, tmp_path)
    model, (ids,) = tiny_model().bfloat16(), prompts(1)
    out = drafted(model, ids, draft=tmp_path, method=method, return_dict_in_generate=True)
    assert out.stats.proposed and out.sequences.shape[1] == ids.shape[1] + NEW
    gaps = gaps_to_first_choice(model(out.sequences).logits[0, ids.shape[1] - 1 : -1].float(), out.sequences[0, ids.shape[1] :])
    assert max(gaps) < 0.2


def test_a_longer_text_gets_a_larger_cache(saved):
    model, directory = saved
    (ids,) = prompts(1)
    for new in (8, 256 - ids.shape[1]):
        expected = tiny_model().generate(ids, max_new_tokens=new)
        assert torch.equal(drafted(model, ids, draft=directory, max_new_tokens=new), expected)


def test_all_goes_when_the_model_goes(saved):
    model, directory = saved
    drafted(model, prompts(1)[0], draft=directory)
    (draft,) = vars(model)["_pard2_kept"]._drafts.values()
    gone = weakref.ref(model), weakref.ref(draft)
    del model, draft, saved
    # The fixture's value is still held by pytest: only the draft can be seen to go.
    pard2.transformers.forget(gone[0]())
    gc.collect()
    assert gone[1]() is None


def test_a_model_alone_is_collected_with_its_draft(tmp_path):
    model = tiny_model()
    save_draft(tiny_draft(Target(tiny_model())), tmp_path / "draft")
    drafted(model, prompts(1)[0], draft=tmp_path / "draft")
    gone = weakref.ref(model), weakref.ref(vars(model)["_pard2_kept"])
    del model
    gc.collect()
    assert gone[0]() is None and gone[1]() is None


@pytest.mark.filterwarnings("ignore:the draft .* was made for another target")
def test_the_model_stays_what_it_was(saved, tmp_path):
    """It can be trained on, copied, pickled and saved; and what is then said is said by its new weights."""
    model, directory = saved
    for parameter in model.model.layers[0].parameters():
        parameter.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    (ids,) = prompts(1)
    drafted(model, ids, draft=directory)
    assert [parameter.requires_grad for parameter in model.parameters()] == before and not model.training
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    model.save_pretrained(tmp_path / "copy")
    copies.append(type(model).from_pretrained(tmp_path / "copy"))
    for one in copies:
        assert torch.equal(one.generate(ids, max_new_tokens=NEW), tiny_model().generate(ids, max_new_tokens=NEW))
        assert not isinstance(vars(one).get("_pard2_kept"), kept_module._Kept)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), 0.5)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    trained = drafted(model, ids, draft=directory)
    assert torch.equal(trained, model.generate(ids, max_new_tokens=NEW)) and not torch.equal(trained, copies[0].generate(ids, max_new_tokens=NEW))
    other = tiny_model(seed=9)
    model.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(drafted(model, ids, draft=directory), other.generate(ids, max_new_tokens=NEW))


def test_a_causal_lm_of_transformers_is_a_draft(target):
    lm, (ids,) = tiny_lm_draft().lm, prompts(1)
    out = drafted(target.model, ids, draft=lm, return_dict_in_generate=True)
    assert torch.equal(out.sequences, tiny_model().generate(ids, max_new_tokens=NEW)) and out.stats.proposed
    engine = vars(target.model)["_pard2_kept"]._engine
    drafted(target.model, ids, draft=lm)
    assert engine.method == "vsd" and vars(target.model)["_pard2_kept"]._engine is engine


def test_the_name_hides_nobody_elses():
    namespace: dict[str, Any] = {}
    exec("from pard2 import *", namespace)
    assert "transformers" not in namespace and pard2.transformers is not transformers
