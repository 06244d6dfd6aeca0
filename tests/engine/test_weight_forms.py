"""Decoding with weights in our own forms: every method says what plain decoding says, to the token."""

import subprocess
import sys

import pytest
import torch

from pard2 import Engine, SamplingParams
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.pruning import cut_draft
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.weight_choice import WEIGHTS, asked_format, choose_format
from pard2.checkpoints.write import save_draft
from pard2.errors import Pard2Error
from pard2.kernels.weight_format import has_panels, weight_formats
from tiny import MASK, pard_draft, random_prompts, tiny_draft, tiny_model, tiny_target

CPU, GPU = torch.device("cpu"), torch.device("cuda")
needs_panels = pytest.mark.skipif(not has_panels(), reason="no numba, or a processor that our kernels are not written for")


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """A target and its draft, whose texts vary."""
    place = tmp_path_factory.mktemp("models")
    target = tiny_target(architecture="qwen3")
    target.model.save_pretrained(place / "target")
    save_draft(tiny_draft(target), place / "draft")
    return str(place / "target"), str(place / "draft")


@needs_panels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("form", ["panels", "int8"])
def test_every_method_says_what_plain_decoding_says(directories, form, threads):
    """In half precision, too, where a last bit decides near-ties: alone and in a batch."""
    torch.set_num_threads(threads)
    try:
        target = load_target(directories[0], "bfloat16", "cpu", form)
        draft = load_draft(directories[1], target, torch.bfloat16, weight_format=form)
        prompts, params = random_prompts(6, seed=3), SamplingParams(max_tokens=40, ignore_eos=True)
        expected = [out.token_ids for out in Engine(target, None, "ar", max_batch=1).generate(prompts, params)]
        accepted = 0
        for method, tree in (("ar", 0), ("pard2-ti", 0), ("pard2-td", 0), ("pard2-td", 12)):
            for size in (1, 6):
                found = Engine(target, draft if method != "ar" else None, method, 6, max_batch=size, tree=tree).generate(prompts, params)
                assert [out.token_ids for out in found] == expected, (method, tree, size)
                accepted += sum(out.stats.accepted for out in found)
        assert accepted > 20 and len({tuple(text) for text in expected}) > 2, "too dull to tell anything"
    finally:
        torch.set_num_threads(1)


@needs_panels
def test_int8_is_nearly_the_same_model(directories):
    prompt = torch.tensor([random_prompts(1, seed=5)[0]])
    exact, rounded = (load_target(directories[0], "float32", "cpu", form).forward(prompt).logits for form in ("plain", "int8"))
    assert 0 < (exact - rounded).abs().mean() < 0.05 * exact.std()


@needs_panels
def test_what_is_asked_for_is_loaded(directories):
    """int8 of float32 weights are rounded once, from what the file holds."""
    for weights, dtype, expected in (("int8", "bfloat16", "int8"), ("int8", "float32", "int8"), ("auto", "float32", "plain")):
        engine = Engine.from_pretrained(directories[0], directories[1], dtype=dtype, device="cpu", weights=weights)
        assert engine.target.weight_format == expected
    kept = {Engine.from_pretrained(directories[0], device="cpu", weights=weights).target.weight_format for weights in ("auto", "bf16")}
    assert len(kept) == 1 and kept < {"onednn", "fbgemm", "panels"}


@pytest.mark.parametrize("plain_target", [False, True])
@pytest.mark.parametrize("vocabulary", [None, torch.arange(0, 61, 2)], ids=["whole", "part"])
@pytest.mark.parametrize("form", ["plain", "fbgemm", "onednn", "panels", "int8"])
def test_a_draft_shares_the_tables_of_a_target_in_any_form(tmp_path, form, vocabulary, plain_target):
    """A target that is quantised, or that a caller of transformers loaded, stays plain beside any draft."""
    if form not in weight_formats(CPU, torch.bfloat16):
        pytest.skip("this CPU has no such products")
    made = tiny_target()
    made.model.save_pretrained(tmp_path / "target")
    shared = cut_draft(made, [0, 1], MASK, 6, (-1, -2), shared_vocabulary=True, vocabulary=vocabulary).eval().requires_grad_(False)
    save_draft(shared, tmp_path / "draft", vocabulary=False)
    target = load_target(str(tmp_path / "target"), "bfloat16", "cpu", "plain" if plain_target else form)
    draft = load_draft(str(tmp_path / "draft"), target, torch.bfloat16, weight_format=form)
    assert draft.lm.get_input_embeddings().weight.dtype == torch.bfloat16
    for method in ("pard2-td", "pard2-ti"):
        (out,) = Engine(target, draft, method, 6).generate(random_prompts(1, seed=3), SamplingParams(max_tokens=12))
        assert len(out.token_ids) == 12


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "device", "dtype", "message"),
    [
        ("int4", CPU, torch.bfloat16, r"`weights` 'int4' is not one of auto, bf16, int8"),
        ("int8", GPU, torch.bfloat16, r"`weights` int8 is for decoding on a CPU, not on cuda; say `device` cpu, or leave `weights` away"),
        ("bf16", CPU, torch.float32, r"`weights` bf16 does not go with `dtype` float32; leave one of them away"),
        ("bf16", GPU, torch.float16, r"`weights` bf16 does not go with `dtype` float16; leave one of them away"),
    ],
)
def test_words_that_do_not_fit(weights, device, dtype, message):
    with pytest.raises(Pard2Error, match=f"^{message}$"):
        asked_format(weights, device, dtype)
    assert all(asked_format(word, CPU, torch.bfloat16) is None for word in WEIGHTS if word != "int8")


def test_int8_without_numba(monkeypatch):
    monkeypatch.setattr("pard2.checkpoints.weight_choice.has_panels", lambda: False)
    with pytest.raises(Pard2Error, match=r"^`weights` int8 needs the package numba \(pip install 'pard2\[cpu\]'\) and a processor"):
        asked_format("int8", CPU, torch.bfloat16)


@needs_panels
@pytest.mark.parametrize("form", ["panels", "int8"])
def test_a_model_of_another_kind(form):
    with pytest.raises(Pard2Error, match=f"^`weights` {form} needs a model of Llama's kind .*, and 'mine' is a GPT2LMHeadModel$"):
        choose_format(form, tiny_model("gpt2"), torch.bfloat16, "mine")
    assert choose_format(None, tiny_model("gpt2"), torch.bfloat16, "mine", draft=True) in ("plain", "fbgemm", "onednn")


@needs_panels
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_weight_is_named(value):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    with pytest.raises(Pard2Error, match=r"^'mine': model.layers.1.mlp.up_proj.weight holds NaN or infinity, which int8 cannot"):
        choose_format("int8", model, torch.float32, "mine")
    assert choose_format(None, model, torch.bfloat16, "mine", draft=True) != "int8"


@needs_panels
def test_a_draft_takes_int8_unasked_where_that_is_fastest(monkeypatch):
    """It decides how fast the text comes, never what it says; the target stays the model that was named."""
    timed = []
    monkeypatch.setattr(
        "pard2.checkpoints.weight_choice.measured_times", lambda formats: timed.append(formats) or {one: [1.0] * 4 for one in formats}
    )
    monkeypatch.setattr("pard2.checkpoints.weight_choice.fastest", lambda times, sequences: list(times)[-1])
    assert choose_format(None, tiny_model(), torch.bfloat16, "mine", draft=True) == "int8"
    assert choose_format(None, tiny_model(), torch.bfloat16, "mine") == "panels"
    assert choose_format(None, tiny_model(), torch.float32, "mine", draft=True) == "plain"
    assert "int8" in timed[0] and "int8" not in timed[1]


@needs_panels
def test_parallel_drafts_of_any_kind_decode_in_int8():
    target = tiny_target()
    draft = pard_draft(target)
    draft.convert("int8")
    prompts, params = random_prompts(3, seed=3), SamplingParams(max_tokens=20)
    expected = [out.token_ids for out in Engine(target, None, "ar").generate(prompts, params)]
    assert [out.token_ids for out in Engine(target, draft, "pard", 5).generate(prompts, params)] == expected


def test_everything_but_our_own_kernels_does_without_numba(directories):
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from pard2 import Engine, SamplingParams\n"
        "engine = Engine.from_pretrained(sys.argv[1], sys.argv[2], device='cpu')\n"
        "(one,) = engine.generate([[1, 2, 3]], SamplingParams(max_tokens=4, ignore_eos=True))\n"
        "print(engine.target.weight_format, len(one.token_ids))"
    )
    run = subprocess.run([sys.executable, "-c", code, *directories], capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split()[0] not in ("panels", "int8") and run.stdout.split()[1] == "4"
