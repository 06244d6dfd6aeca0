"""Models that cannot be decoded or trained with: said by every command that will need it, before a weight is
read (there is none here)."""

import json

import pytest

from chat_tokenizer import VOCABULARY, byte_tokenizer
from tiny import tiny_model

UNDECODED = {
    "dynamic": "has dynamic rotary frequencies",
    "stablelm": "computes its attention in its own way",
    "bloom": "computes its attention in its own way",
    "falcon": "computes its attention in its own way",
    "gpt_oss": "GptOssAttention has attention sinks",
    "minimax_m2": "layer 0 attends with a window of None, where its config says 8",
    "mamba": "has linear_attention layers",
    "qwen3_next": "has linear_attention layers; only full and sliding-window attention are supported",
}
UNTRAINED = {
    "gemma2": "lacks SDPA attention",
    "cohere": "turns its final states into logits in a way that training does not know; it cannot teach a draft",
    "granite": "turns its final states into logits in a way that training does not know; it cannot teach a draft",
}
WINDOWED = {
    "mistral": "slides a window over the longest conversation (23 tokens); lower data.max_length to 8, or name another draft.path",
    "mixtral": "slides a window over the longest conversation (23 tokens); lower data.max_length to 8",
    "phi3": "slides a window over the longest conversation (23 tokens); lower data.max_length to 8",
}
EXTRAS = {
    "dynamic": {"architecture": "llama", "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    "cohere": {"logit_scale": 0.25},
    "gpt2": {"context": 20},
    "wide": {"architecture": "gemma3_text", "sliding_window": 64},
}


@pytest.fixture
def commands(tmp_path):
    """Command lines for a target of that kind, of which there are a config and a tokenizer alone, and
    the files that they need."""

    def make(kind: str) -> dict[str, list]:
        directory = tmp_path / kind
        model = tiny_model(**({"architecture": kind, "vocab": VOCABULARY, "context": 96} | EXTRAS.get(kind, {})))
        model.config.save_pretrained(directory)
        byte_tokenizer().save_pretrained(directory)
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        (tmp_path / "data.jsonl").write_text(json.dumps({"id": "one", "messages": messages}) + "\n")
        sections = {
            "target": {"name": str(directory)},
            "draft": {"layers": [0]},
            "data": {"train": [str(tmp_path / "data.jsonl")]},
            "features": {"cache": str(tmp_path / "cache")},
            "loop": {"output": str(tmp_path / "run"), "steps": 1, "device": "cpu"},
        }
        (tmp_path / "run.yaml").write_text(json.dumps(sections))
        return {
            "dry run": ["train", tmp_path / "run.yaml", "--dry-run"],
            "train": ["train", tmp_path / "run.yaml"],
            "cache": ["data", "cache", tmp_path / "run.yaml"],
            "init": ["draft", "init", "-t", directory, "--layers", "1", "-o", tmp_path / "draft", "--device", "cpu"],
            "regenerate": ["data", "regenerate", "-t", directory, "-i", tmp_path / "data.jsonl", "-o", tmp_path / "new.jsonl", "--device", "cpu"],
        }

    return make


def assert_told(pard2, tmp_path, lines, said):
    for name, line in lines.items():
        assert said in pard2(*line).error, name
    assert not any((tmp_path / made).exists() for made in ("cache", "draft", "run/metrics.jsonl"))


@pytest.mark.parametrize(("kind", "said"), UNDECODED.items())
def test_a_target_that_cannot_be_decoded(pard2, commands, tmp_path, kind, said):
    assert_told(pard2, tmp_path, commands(kind), said)


@pytest.mark.parametrize(("kind", "said"), UNTRAINED.items())
def test_a_pair_that_cannot_be_trained_with(pard2, commands, tmp_path, kind, said):
    lines = commands(kind)
    assert "model.safetensors is corrupt or missing" in pard2(*lines.pop("regenerate")).error  # as a target it decodes
    assert_told(pard2, tmp_path, lines, said)


@pytest.mark.parametrize(("kind", "said"), (WINDOWED | {"gpt2": "record one has 23 tokens, the models read 20; set data.max_length=20"}).items())
def test_conversations_longer_than_a_window_or_a_context(pard2, commands, tmp_path, kind, said):
    lines = commands(kind)
    for of_any_length in ("init", "regenerate"):
        assert "model.safetensors is corrupt or missing" in pard2(*lines.pop(of_any_length)).error
    assert_told(pard2, tmp_path, lines, said)


def test_a_draft_is_looked_at_as_well_as_its_target(pard2, commands, tmp_path):
    odd = commands("stablelm")["init"][3]
    dry, train, cache = (commands("llama")[name] for name in ("dry run", "train", "cache"))
    for line in (dry, train, cache):
        assert f"'{odd}' (StableLmForCausalLM) computes its attention" in pard2(*line, "draft.layers=null", f"draft.path={odd}").error


@pytest.mark.parametrize("kind", ["llama", "wide", "gpt_neox", "opt", "smollm3", "qwen3_moe", "deepseek_v3"])
def test_what_can_be_decoded_and_trained_passes(pard2, commands, kind):
    lines = commands(kind)
    assert pard2(*lines.pop("dry run")).code == 0
    for name, line in lines.items():
        assert "model.safetensors is corrupt or missing" in pard2(*line).error, name
