"""Any causal LM as target: the same text as transformers' own, or a refusal by
name before the first token."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from pard2 import Engine, SamplingParams
from pard2.errors import Pard2Error
from pard2.models.draft import Draft
from pard2.models.target import Target
from tiny import greedy, perfect_draft, random_prompts, tiny_draft, tiny_model, tiny_target

NEW = 16

# Those with two kinds of layers need so many for both to occur.
LAYERS = {"gemma2": 4, "gemma3_text": 6, "gemma3n_text": 6, "olmo3": 4, "cohere2": 4, "exaone4": 4}

ROTARY = ["gemma", "gemma2", "gemma3_text", "phi3", "phi", "gpt_neox", "olmo2", "olmo3", "starcoder2", "cohere", "cohere2", "granite", "glm4"]
OTHERS = ["nemotron", "smollm3", "exaone4", "gpt2", "gpt_bigcode", "opt", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gemma3n_text"]
LEAN = ["llama", "qwen2", "qwen3", "mistral"]
ROUGH = {"gpt2": {"initializer_range": 0.6}}  # else it repeats one token
UNCUT = {"gemma3n_text"}  # layers that lend each other keys cannot be cut apart


def roughened(architecture: str) -> Target:
    """A target whose norms and biases are no longer 1 and 0: left as they are made, one that is
    forgotten would not be missed."""
    model = tiny_model(architecture, layers=LAYERS.get(architecture, 2), **ROUGH.get(architecture, {}))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return Target(model, name=f"tiny-{architecture}")


def assert_says_what_transformers_says(target: Target, cut: bool = True) -> None:
    prompts = random_prompts(3, seed=3)  # with the answers, longer than the windows
    expected = [greedy(target, prompt, NEW) for prompt in prompts]
    assert len({token for text in expected for token in text}) > 4, "texts too dull to tell anything"
    engines = [Engine(target, method="ar"), Engine(target, perfect_draft(target), "vsd", 4)]
    if cut:
        draft = tiny_draft(target)
        engines += [Engine(target, draft, "pard2-ti", 6), Engine(target, draft, "pard2-td", 6)]
    for engine in engines:
        outputs = engine.generate(prompts, SamplingParams(max_tokens=NEW))
        assert [out.token_ids for out in outputs] == expected, engine.method
        if engine.method == "vsd" and cut:
            # It is its own draft: passes that differ in anything but their rows would show as rejections.
            assert sum(out.stats.accepted for out in outputs) == sum(out.stats.proposed for out in outputs)


@pytest.mark.parametrize("architecture", LEAN + ROTARY + OTHERS)
def test_says_what_transformers_says(architecture):
    assert_says_what_transformers_says(roughened(architecture), architecture not in UNCUT)


@pytest.mark.parametrize("architecture", ["phi3", "llama"])
def test_long_texts_stay_where_the_rotary_frequencies_do_not_change(architecture):
    """Beyond its first training length, LongRoPE turns every key in a pass of one long text in the batch;
    those cached are not turned.

    Nor may a table of positions made in advance reach so far.
    """
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "long_factor": [4.0] * 4, "short_factor": [1.0] * 4, "original_max_position_embeddings": 24}
    first = {"original_max_position_embeddings": 24} if architecture == "phi3" else {}  # Phi 3 names it beside its rope
    target = tiny_target(architecture=architecture, rope_parameters=rope, **first)
    assert target.context_length == 24
    output = Engine(target).generate([[5, 9, 2]], SamplingParams(max_tokens=100))[0]
    assert len(output.token_ids) == 22 and output.finish_reason == "length"
    # The one token that lies past the context is read by nobody.
    assert output.token_ids == greedy(target, [5, 9, 2], 22)


@pytest.mark.parametrize(
    "rope", [{"rope_type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}]
)
def test_other_scaled_frequencies_are_the_models_own(rope):
    assert_says_what_transformers_says(tiny_target(context=64, rope_parameters={"rope_theta": 1e4} | rope))


BY_CONFIG = {
    "mamba": "has linear_attention layers",
    "jamba": "has linear_attention layers",
    "qwen3_next": "has linear_attention layers",
    "llama4_text": "has chunked_attention layers",
    "bloom": "computes its attention in its own way",
    "falcon": "computes its attention in its own way",
}
BY_TRIAL = {
    "gpt_oss": "GptOssAttention has attention sinks",
    "minimax_m2": "layer 0 attends with a window of None, where its config says 8",
    "phimoe": "layer 0 attends with a window of None, where its config says 8",
    "diffllama": "its layers do not each attend once",
    "doge": "DogeAttention masks its attention in its own way",
    "bert": "BertSelfAttention lets tokens see those after them",
}


@pytest.mark.parametrize(("architecture", "said"), (BY_CONFIG | BY_TRIAL).items())
def test_what_would_say_something_else_is_refused_when_the_engine_is_made(architecture, said):
    """MiniMax-M2, PhiMoE and DiffLlama would run, and say something else than they should."""
    target = Target(tiny_model(architecture), name="mine")
    with pytest.raises(Pard2Error) as caught:
        Engine(target)
    message = str(caught.value)
    assert "\n" not in message and "'mine'" in message and type(target.model).__name__ in message and said in message


def test_a_draft_is_refused_as_a_target_is():
    with pytest.raises(Pard2Error, match="'odd' .*attention sinks"):
        Engine(tiny_target(), Draft(tiny_model("gpt_oss"), None, name="odd"), "vsd")


def test_a_draft_that_is_not_used_is_not_tried():
    assert Engine(tiny_target(), Draft(tiny_model("gpt_oss"), None), "ar").method == "ar"


def test_encoder_decoders_are_refused():
    config = AutoConfig.for_model("t5", vocab_size=61, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    with pytest.raises(Pard2Error, match="T5ForConditionalGeneration"):
        Engine(Target(AutoModelForSeq2SeqLM.from_config(config)))


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_frequencies_that_follow_the_longest_text_are_refused(architecture):
    """Each text would depend on its neighbours.

    Gemma 3 names one kind of frequencies for each kind of layer.
    """
    rope: dict = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    if architecture == "gemma3_text":
        rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    with pytest.raises(Pard2Error, match="dynamic rotary frequencies"):
        Engine(tiny_target(architecture=architecture, rope_parameters=rope))


def test_the_trial_leaves_no_trace():
    """Neither in the hooks of a target's blocks, nor in its buffers, which training may need."""
    target = tiny_target(architecture="gemma2", layers=4)
    _ = target.decoder
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in target.model.modules())
    assert target.forward(torch.tensor([[1, 2]]), layers=(-1, 1)).features.shape == (1, 2, 64)
    assert not any(buffer.is_inference() for buffer in target.model.buffers())
    assert target.model.config._attn_implementation != "pard2_ragged"
