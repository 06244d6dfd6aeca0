"""The two decoders against transformers' own forward pass, and against each other."""

import pytest
import torch
from torch import nn

from pard2.kernels.fused import FusedLinear
from pard2.kernels.packed import PackedLinear, has_bfloat16_products
from pard2.kernels.weight_format import has_panels
from pard2.runtime.hidden_states import HiddenStateRecorder
from pard2.runtime.kv_cache import KVCache
from pard2.runtime.llama_cpu_decoder import LlamaCpuDecoder
from pard2.runtime.llama_decoder import LlamaDecoder, is_llama_like
from pard2.runtime.llama_panels_decoder import LlamaPanelsDecoder
from pard2.runtime.support import new_decoder
from pard2.runtime.token_batch import QuerySpan, TokenBatch
from pard2.runtime.transformers_decoder import TransformersDecoder
from tiny import tiny_model

OURS = ["panels", "int8"] if has_panels() else []
needs_bfloat16_products = pytest.mark.skipif(not has_bfloat16_products(), reason="this CPU multiplies no bfloat16 numbers")
LEAN = ["llama", "qwen2", "qwen3", "mistral"]
LAYERS = (-1, 0, 1, -2)


def rough(architecture, **extra):
    """Norms and biases that are not 1 and 0, so that one that is forgotten is missed."""
    model = tiny_model(architecture, layers=3, **extra)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def texts_of(*lengths):
    return [torch.randint(0, 60, (length,), generator=torch.Generator().manual_seed(length)).tolist() for length in lengths]


def weight_of(layer):
    """[out, in] of a packed layer, or of a part of one, in float32."""
    return layer.weight if isinstance(layer, PackedLinear) else layer.whole.weight[layer._rows]


def decoders(model):
    return [LlamaDecoder(model), TransformersDecoder(model, HiddenStateRecorder(model))]


@torch.no_grad()
def run(decoder, texts, pieces, layers=LAYERS):
    """Logits and features [length, ...] of each text, read in passes of up to pieces[i] rows of text i."""
    cache = KVCache(3, sum(len(text) for text in texts))
    extents = [cache.reserve(len(text)) for text in texts]
    past = [0] * len(texts)
    logits, features = [[] for _ in texts], [[] for _ in texts]
    while any(done < len(text) for done, text in zip(past, texts, strict=True)):
        counts = [min(piece, len(text) - done) for piece, text, done in zip(pieces, texts, past, strict=True)]
        going = [n for n, count in enumerate(counts) if count]
        ids = torch.tensor([token for n in going for token in texts[n][past[n] : past[n] + counts[n]]])
        batch = TokenBatch(cache, [QuerySpan(extents[n], past[n], counts[n]) for n in going], ids)
        output = decoder.run(batch, None, torch.arange(len(ids)), layers)
        for n, rows, states in zip(going, *(x.split([counts[n] for n in going]) for x in (output.logits, output.features)), strict=True):
            logits[n].append(rows)
            features[n].append(states)
            past[n] += counts[n]
    return [torch.cat(x) for x in logits], [torch.cat(x) for x in features]


@pytest.mark.parametrize("architecture", LEAN)
def test_ragged_passes_are_transformers_own_forward(architecture):
    """Texts beyond the window of 8; whole, in pieces, and beside others: logits and
    the features of every layer."""
    model = rough(architecture, **({"attention_bias": True} if architecture == "llama" else {}))
    assert is_llama_like(model)
    texts = texts_of(21, 2, 12)
    for decoder in decoders(model):
        for pieces in ([100] * 3, [1, 5, 3]):
            logits, features = run(decoder, texts, pieces)
            for text, rows, states in zip(texts, logits, features, strict=True):
                with torch.no_grad():
                    output = model(torch.tensor([text]), output_hidden_states=True)
                torch.testing.assert_close(rows, output.logits[0], rtol=1e-3, atol=1e-3)
                torch.testing.assert_close(states, torch.cat([output.hidden_states[i][0] for i in LAYERS], -1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_only_the_rows_asked_for_get_logits(architecture):
    model = rough(architecture)
    decoder = new_decoder(model, "mine", HiddenStateRecorder(model))
    assert isinstance(decoder, LlamaDecoder) == (architecture == "llama")
    batch = lambda: TokenBatch(cache := KVCache(3, 5), [QuerySpan(cache.reserve(5), 0, 5)], ids)  # noqa: E731
    ids = torch.tensor([5, 9, 2, 7, 1])
    with torch.no_grad():
        whole = decoder.run(batch(), None, torch.arange(5))
        some = decoder.run(batch(), None, torch.tensor([4, 1]))
        embedded = decoder.run(batch(), model.get_input_embeddings()(ids), torch.arange(5), (-1,))
        none = decoder.run(batch(), None, None, (-1,))
    assert whole.features is None and none.logits is None
    torch.testing.assert_close(some.logits, whole.logits[[4, 1]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(embedded.logits, whole.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(none.features, embedded.features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", LEAN)
def test_what_is_trained_or_loaded_is_what_is_decoded_with(architecture):
    """A fused copy would go on saying what the model said before: evaluation during
    training would show no progress."""
    model = rough(architecture)
    decoder = LlamaDecoder(model)
    text = texts_of(12)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    (first,), _ = run(decoder, text, [100])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.tensor(text)).logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    (trained,), _ = run(decoder, text, [100])
    with torch.no_grad():
        torch.testing.assert_close(trained, model(torch.tensor(text)).logits[0], rtol=1e-3, atol=1e-3)
    assert (trained - first).abs().max() > 0.01
    model.load_state_dict(before)
    torch.testing.assert_close(run(decoder, text, [100])[0][0], first, rtol=1e-4, atol=1e-4)


def test_fusing_costs_no_memory():
    model = tiny_model()
    decoder = LlamaDecoder(model)
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    for parts in ([attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]):
        assert len({part.weight.untyped_storage().data_ptr() for part in parts}) == 1
    del decoder


@pytest.mark.parametrize("bias", [False, True])
def test_a_fused_layer_is_its_parts_side_by_side(bias):
    torch.manual_seed(0)
    parts = [nn.Linear(8, size, bias=bias) for size in (3, 5)]
    x = torch.randn(4, 8)
    expected = torch.cat([part(x) for part in parts], -1)
    torch.testing.assert_close(FusedLinear(parts).forward(x), expected)
    torch.testing.assert_close(torch.cat([part(x) for part in parts], -1), expected)


class Adapted(nn.Linear):
    """As an adapter library would put one in place of a linear layer."""

    def forward(self, x):
        return super().forward(x) + 1


def test_layers_that_are_more_than_linear_are_left_to_their_own_code():
    """Fused by their weights, an adapter would be silently lost."""
    model = tiny_model()
    mine = model.model.layers[1].self_attn.v_proj
    model.model.layers[1].self_attn.v_proj = Adapted(mine.in_features, mine.out_features, bias=False)
    assert not is_llama_like(model)
    assert isinstance(new_decoder(model, "mine", HiddenStateRecorder(model)), TransformersDecoder)


def test_another_activation_is_left_to_its_own_code():
    assert not is_llama_like(tiny_model(hidden_act="gelu")) and is_llama_like(tiny_model())


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="this torch has no FBGEMM")
@pytest.mark.parametrize(
    ("architecture", "form"), [(kind, "fbgemm") for kind in ("llama", "qwen2", "gemma2")] + [(kind, form) for kind in LEAN for form in OURS]
)
def test_packed_passes_are_the_plain_ones(architecture, form):
    plain, packed = rough(architecture), rough(architecture)
    for model in (plain, packed):  # values that float16 and float32 both hold
        model.load_state_dict({key: tensor.bfloat16().float() for key, tensor in model.state_dict().items()})
    decoder = new_decoder(packed, "mine", HiddenStateRecorder(packed), form)
    if form == "int8":  # rounded weights are weights, too
        with torch.no_grad():
            for name, module in plain.named_modules():
                if isinstance(module, nn.Linear):
                    module.weight.copy_(weight_of(packed.get_submodule(name)))
    texts = texts_of(12, 5)
    results = [run(new_decoder(plain, "mine", HiddenStateRecorder(plain)), texts, [5, 3]), run(decoder, texts, [5, 3])]
    for expected, got in zip(*results, strict=True):
        for one, other in zip(expected, got, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3)
    with torch.no_grad():  # the model's own code still works, by the same packed layers
        torch.testing.assert_close(packed(torch.tensor([texts[0]])).logits[0], results[0][0][0], rtol=1e-3, atol=1e-3)


# --- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gpt_neox", "gemma3_text"])
def test_states_are_found_wherever_an_architecture_keeps_its_blocks(architecture):
    """OPT passes its base model by, and its final state was not seen."""
    model = tiny_model(architecture, layers=3)
    recorder = HiddenStateRecorder(model)
    assert recorder.num_states == 4
    ids = torch.tensor([[5, 9, 2, 7]])
    with torch.no_grad(), recorder.recording((-1, 0, 2)) as states:
        output = model(ids, output_hidden_states=True)
    features, last = states.features, states.last_state
    torch.testing.assert_close(features, torch.cat([output.hidden_states[i] for i in (-1, 0, 2)], -1), rtol=0, atol=0)
    assert last.equal(output.hidden_states[-1])
    assert not any(block._forward_pre_hooks for block in recorder.blocks)


def test_recorders_of_one_model_do_not_disturb_each_other():
    model = tiny_model(layers=3)
    one, other = HiddenStateRecorder(model), HiddenStateRecorder(model)
    with torch.no_grad(), one.recording((1,)) as first, other.recording((2, 0)) as second:
        states = model(torch.tensor([[5, 9]]), output_hidden_states=True).hidden_states
    assert first.features.equal(states[1]) and second.features.equal(torch.cat([states[2], states[0]], -1))


@pytest.mark.parametrize("form", [*OURS, pytest.param("onednn", marks=needs_bfloat16_products)])
def test_rows_are_the_same_bits_in_plain_decoding_and_in_verification(form):
    """In bfloat16 a last bit decides near-ties: what verification says of a token must
    be what a plain step says."""
    model = tiny_model(layers=3, hidden=64, vocab=300).bfloat16()
    decoder = new_decoder(model, "tiny", HiddenStateRecorder(model), form)
    assert isinstance(decoder, LlamaPanelsDecoder if form in OURS else LlamaCpuDecoder)
    texts = texts_of(90)
    (plain,), (features,) = run(decoder, texts, [1])
    for rows in (2, 7, 16, *([40, 90] if form in OURS else [])):
        (verified,), (theirs,) = run(decoder, texts, [rows])
        assert torch.equal(verified, plain) and torch.equal(theirs, features)
