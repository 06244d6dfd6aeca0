"""What would make another text than plain `generate` is refused, by its argument's name and in one line."""

from typing import Any

import pytest
import torch
import transformers

import pard2
from pard2.errors import Pard2Error
from pard2.models.draft import Draft
from pard2.models.target import Target
from tiny import tiny_draft, tiny_lm_draft, tiny_model, tiny_target

IDS = torch.tensor([[5, 9, 2, 7]])


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Draft]:
    target = tiny_target()
    return target.model, tiny_draft(target)


def refused(model: Any, ids: Any = IDS, **arguments: Any) -> str:
    with pytest.raises(Pard2Error) as caught:
        model.generate(ids, custom_generate=pard2.transformers.generate, **({"max_new_tokens": 8} | arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Mine(transformers.LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores


class MyTopK(transformers.TopKLogitsWarper):
    """Of a kind that is known, and does something else."""


_SAMPLE = {"do_sample": True}
REFUSED = {
    "several beams": ({"num_beams": 3}, "`num_beams`: beam search cannot be drafted"),
    "several answers": ({"num_return_sequences": 2} | _SAMPLE, "`num_return_sequences`: 2 answers"),
    "lookup": ({"prompt_lookup_num_tokens": 3}, "`prompt_lookup_num_tokens`: assisted generation"),
    "assistant": ({"assistant_model": tiny_lm_draft().lm}, "`assistant_model`: the text has a draft already"),
    "own processor": ({"logits_processor": [Mine()]}, "`logits_processor`: Mine has no counterpart"),
    "subclass": ({"logits_processor": [MyTopK(3)]} | _SAMPLE, "`logits_processor`: MyTopK has no counterpart"),
    "another place": (
        {"logits_processor": [transformers.TopKLogitsWarper(3)]} | _SAMPLE,
        "`logits_processor`: TopKLogitsWarper stands where `generate` itself would not put it",
    ),
    "cut when greedy": ({"logits_processor": [transformers.TopKLogitsWarper(3)]}, "`logits_processor`: TopKLogitsWarper stands where"),
    "part of the prompt": (
        {"logits_processor": [transformers.RepetitionPenaltyLogitsProcessor(1.2, prompt_ignore_length=2)]},
        "`logits_processor`: RepetitionPenaltyLogitsProcessor leaves a part of the prompt out",
    ),
    "n-grams": ({"no_repeat_ngram_size": 2}, "`no_repeat_ngram_size`: NoRepeatNGramLogitsProcessor has no counterpart"),
    "bad words": ({"bad_words_ids": [[3]]}, "`bad_words_ids`: "),
    "prefix": ({"prefix_allowed_tokens_fn": lambda *_: [1, 2]}, "`prefix_allowed_tokens_fn`: "),
    "bias of two": ({"sequence_bias": {(1, 2): 1.0}}, "`sequence_bias`: biases of single tokens"),
    "bias too large": ({"sequence_bias": {(1,): 1000.0}}, "`sequence_bias`: biases of single tokens"),
    "typical": ({"typical_p": 0.5} | _SAMPLE, "`typical_p`: "),
    "temperature": ({"temperature": 1e-7} | _SAMPLE, "`temperature` 1e-07: give 0 (greedy) or a number"),
    "scores": ({"output_scores": True, "return_dict_in_generate": True}, "`output_scores`: "),
    "states": ({"output_hidden_states": True, "return_dict_in_generate": True}, "`output_hidden_states`: "),
    "cache": ({"past_key_values": transformers.DynamicCache()}, "`past_key_values`: "),
    "kind of cache": ({"cache_implementation": "static"}, "`cache_implementation`: "),
    "padding": ({"attention_mask": torch.tensor([[0, 1, 1, 1]])}, "`attention_mask`: tokens of the prompt are masked"),
    "positions": ({"position_ids": torch.tensor([[3, 4, 5, 6]])}, "`position_ids`: they do not count from 0"),
    "further inputs": ({"labels": IDS}, "`labels`: a draft does not see it"),
    "too long": ({"max_new_tokens": 300}, "`max_new_tokens`: a prompt of 4 tokens and an answer of 300 do not fit the context of 256"),
    "method": ({"method": "fast"}, "`method` 'fast' is not one of"),
    "draft tokens": ({"draft_tokens": 0}, "`draft_tokens` 0: at least 1"),
    "too many": ({"draft_tokens": 7}, "`draft_tokens` 7: this draft was trained for 6 at most"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_carried_out_exactly(pair, case):
    arguments, said = REFUSED[case]
    message = refused(pair[0], **({"draft": pair[1]} | arguments))
    assert message.startswith(said), message


def test_several_prompts(pair):
    assert refused(pair[0], IDS.repeat(2, 1), draft=pair[1]).startswith("`input_ids`: shape [2, 4], and one prompt at a time is decoded")
    embedded = pair[0].get_input_embeddings()(IDS)
    assert refused(pair[0], None, inputs_embeds=embedded, draft=pair[1]).startswith("`inputs_embeds`: ")


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        (None, "`draft` is missing: give a directory, a hub id, 'smollm2'"),
        (5, "`draft` is a int; give a directory"),
        ("/nowhere/at/all", "no model '/nowhere/at/all'"),
        (tiny_draft(tiny_target(hidden=64)), "`draft` 'tiny-llama[0,1]' reads 128 features, 2 layers of 'LlamaForCausalLM' have 64"),
        (tiny_lm_draft(vocab=50), "'tiny-lm' has a vocabulary of 50, the target 'LlamaForCausalLM' one of 61"),
        (tiny_lm_draft().train(), "`draft` 'tiny-lm' is in training mode"),
    ],
    ids=["none", "no draft", "no directory", "another width", "another vocabulary", "in training"],
)
def test_drafts_that_do_not_fit(pair, draft, said):
    message = refused(pair[0], draft=draft)
    assert said in message, message


def test_a_model_in_a_state_that_the_engine_would_not_see(pair):
    model = tiny_model().train()
    assert "is in training mode, and its dropout would choose along; say `model.eval()` first" in refused(model, draft=pair[1])
    model.eval().model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert "has a forward hook on model.layers.1.mlp" in refused(model, draft=pair[1])
    spread = tiny_model()
    spread.lm_head.to("meta")
    with pytest.raises(Pard2Error, match=r"^`device_map`: the weights of 'LlamaForCausalLM' lie on cpu, meta"):
        pard2.transformers.generate(spread, IDS, draft=pair[1])
    assert "GptOss" in refused(tiny_model("gpt_oss"), draft=Draft(tiny_model(), None))


def test_a_refusal_changes_nothing(pair):
    refused(pair[0], draft=pair[1], num_beams=2)
    found = pair[0].generate(IDS, custom_generate=pard2.transformers.generate, draft=pair[1], max_new_tokens=8)
    assert torch.equal(found, tiny_model().generate(IDS, max_new_tokens=8))
    assert Target(tiny_model()).model.generation_config.max_new_tokens is None
