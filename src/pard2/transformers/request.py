"""From what transformers has prepared for one call of `generate` to the same request for our engine.

The logits processors and stopping criteria that `generate` would apply are read, not the settings that they
were made of: what is not known here, a caller's own processor say, cannot slip through.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import transformers
from torch import Tensor

from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error
from pard2.hf import GenerationConfig, PreTrainedModel
from pard2.models.target import Target

_WAY = "leave it away, or generate without `custom_generate`"
# The processors that SamplingParams can say, in the order in which our engine applies them, with the one in
# which transformers does: any other order is another distribution.
_ORDER = (
    "SequenceBiasLogitsProcessor", "RepetitionPenaltyLogitsProcessor", "MinLengthLogitsProcessor",
    "MinNewTokensLengthLogitsProcessor", "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper",
    "LogitNormalization",
)  # fmt: skip
# The arguments that others are made of.
_MADE_OF = {
    "NoRepeatNGramLogitsProcessor": "no_repeat_ngram_size", "EncoderRepetitionPenaltyLogitsProcessor": "encoder_repetition_penalty",
    "EncoderNoRepeatNGramLogitsProcessor": "encoder_no_repeat_ngram_size", "NoBadWordsLogitsProcessor": "bad_words_ids",
    "PrefixConstrainedLogitsProcessor": "prefix_allowed_tokens_fn", "ForcedBOSTokenLogitsProcessor": "forced_bos_token_id",
    "ForcedEOSTokenLogitsProcessor": "forced_eos_token_id", "InfNanRemoveLogitsProcessor": "remove_invalid_values",
    "ExponentialDecayLengthPenalty": "exponential_decay_length_penalty", "SuppressTokensLogitsProcessor": "suppress_tokens",
    "SuppressTokensAtBeginLogitsProcessor": "begin_suppress_tokens", "UnbatchedClassifierFreeGuidanceLogitsProcessor": "guidance_scale",
    "TopHLogitsWarper": "top_h", "TypicalLogitsWarper": "typical_p", "EpsilonLogitsWarper": "epsilon_cutoff", "EtaLogitsWarper": "eta_cutoff",
    "WatermarkLogitsProcessor": "watermarking_config", "SynthIDTextWatermarkLogitsProcessor": "watermarking_config",
}  # fmt: skip
_MODES = ("greedy_search", "sample")
_OF_OTHER_MODES = (
    "num_beams", "num_beam_groups", "constraints", "force_words_ids", "penalty_alpha", "prompt_lookup_num_tokens", "use_mtp",
    "assistant_early_exit", "dola_layers",
)  # fmt: skip
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
# Of what goes to the model itself: looked at one by one, or without effect on the text.
_KNOWN = {
    "logits_processor", "stopping_criteria", "generation_config", "streamer", "assistant_model", "synced_gpus",
    "attention_mask", "position_ids", "past_key_values", "logits_to_keep", "use_cache", "cache_position",
}  # fmt: skip


@dataclass(frozen=True)
class GenerateRequest:
    """What one call asks for. criteria: those that are left to be asked after each token."""

    params: SamplingParams
    criteria: Any


def read_request(model: PreTrainedModel, input_ids: Tensor, prepared: dict[str, Any], target: Target) -> GenerateRequest:
    """The settings of a call as our own.

    input_ids: [1, T].
    prepared: what transformers hands to a decoding loop, by name.

    Raises `Pard2Error`, by the argument's name, for what cannot be carried out exactly.
    """
    config = prepared["generation_config"]
    _check_mode(config, prepared)
    _check_inputs(input_ids, prepared)
    stops, limit, criteria = _read_criteria(prepared["stopping_criteria"], target.vocab_size)
    length = input_ids.shape[1]
    longest = (limit if limit is not None else target.context_length + 1) - length
    if longest > target.context_length + 1 - length:
        raise Pard2Error(
            f"`max_new_tokens`: a prompt of {length} tokens and an answer of {longest} do not fit the context of {target.context_length} "
            f"that the model was made for; give at most {max(0, target.context_length + 1 - length)}"
        )
    settings = _read_processors(prepared["logits_processor"], config, length, stops)
    settings["min_tokens"] = min(settings.get("min_tokens", 0), longest)  # transformers warns of it, and goes no further either
    # Drawn from torch's generator, as transformers' own samples are: `set_seed` fixes the text.
    seed = int(torch.randint(2**63 - 1, ())) if config.do_sample else None
    params = SamplingParams(max_tokens=longest, seed=seed, ignore_eos=True, stop_token_ids=stops, **settings)
    return GenerateRequest(params, criteria)


def _refuse(name: str, why: str, way: str = _WAY) -> NoReturn:
    raise Pard2Error(f"`{name}`: {why}; {way}")


def _check_mode(config: GenerationConfig, prepared: dict[str, Any]) -> None:
    for name in _OUTPUTS:
        if getattr(config, name, None):
            _refuse(name, "drafted tokens come without it")
    if (count := config.num_return_sequences or 1) > 1:
        _refuse("num_return_sequences", f"{count} answers at once are not decoded here", "call `generate` once for each")
    mode = config.get_generation_mode()
    if str(getattr(mode, "value", mode)) not in _MODES:
        named = next((name for name in _OF_OTHER_MODES if getattr(config, name, None) not in (None, False, 0, 1)), "generation_config")
        _refuse(named, f"{str(getattr(mode, 'value', mode)).replace('_', ' ')} cannot be drafted, greedy decoding and sampling can")
    if config.cache_implementation not in (None, "dynamic", "dynamic_full"):
        _refuse("cache_implementation", f"the cache is pard2's own, and {config.cache_implementation!r} would change nothing")
    for name, why in (("assistant_model", "the text has a draft already"), ("synced_gpus", "a model spread over processes cannot be decoded here")):
        if prepared.get(name):
            _refuse(name, why)


def _check_inputs(input_ids: Tensor, prepared: dict[str, Any]) -> None:
    for name, value in prepared.items():
        if name not in _KNOWN and value is not None and value is not False:
            _refuse(name, "a draft does not see it, nor does pard2's engine")
    if input_ids.ndim != 2 or len(input_ids) != 1:
        _refuse("input_ids", f"shape {list(input_ids.shape)}, and one prompt at a time is decoded", "call `generate` once for each")
    mask, positions, cache = (prepared.get(name) for name in ("attention_mask", "position_ids", "past_key_values"))
    if mask is not None and not bool((mask == 1).all()):
        _refuse(
            "attention_mask",
            "tokens of the prompt are masked, as `generate` does with pad tokens where it is given no mask",
            "give the prompt without padding, and a mask of ones where it holds the pad token itself",
        )
    if positions is not None and not bool((positions == torch.arange(input_ids.shape[1], device=positions.device)).all()):
        _refuse("position_ids", "they do not count from 0")
    if cache is not None and (getattr(cache, "_is_user_defined", False) or cache.get_seq_length() > 0):
        _refuse("past_key_values", "the cache is pard2's own, and yours would be neither read nor filled")


def _read_criteria(criteria: Iterable[Any], vocab_size: int) -> tuple[tuple[int, ...], int | None, Any]:
    """The tokens that end the text, how long prompt and answer may get (None: without end), and the
    criteria that say more than that."""
    stops: set[int] = set()
    limits: list[int] = []
    others = transformers.StoppingCriteriaList()
    for one in criteria:
        if type(one) is transformers.EosTokenCriteria:
            stops.update(one.eos_token_id.tolist())
        elif type(one) is transformers.MaxLengthCriteria:
            limits.append(one.max_length)
        else:
            others.append(one)
    return tuple(sorted(stop for stop in stops if 0 <= stop < vocab_size)), min(limits, default=None), others


def _read_processors(processors: Iterable[Any], config: GenerationConfig, length: int, stops: tuple[int, ...]) -> dict[str, Any]:
    """Fields of SamplingParams. length: of the prompt."""
    settings: dict[str, Any] = {"temperature": 1.0 if config.do_sample else 0.0}
    last = -1
    for one in processors:
        name = type(one).__name__
        place = _ORDER.index(name) if name in _ORDER and type(one) is getattr(transformers, name, None) else None
        if place is None:
            _refuse(_MADE_OF.get(name, "logits_processor"), f"{name} has no counterpart in pard2's sampling")
        if place <= last or (name.endswith("Warper") and not config.do_sample):
            _refuse("logits_processor", f"{name} stands where `generate` itself would not put it", "set it by its own argument")
        last = place
        _read_processor(one, name, settings, length, stops)
    return settings


def _read_processor(one: Any, name: str, settings: dict[str, Any], length: int, stops: tuple[int, ...]) -> None:
    """Add one of `_ORDER` to the settings."""
    if name == "SequenceBiasLogitsProcessor":
        biases = one.sequence_bias
        if any(len(tokens) != 1 or not -100 <= bias <= 100 for tokens, bias in biases.items()):
            _refuse("sequence_bias", "biases of single tokens from -100 to 100 have a counterpart in pard2's sampling, others have not")
        settings["logit_bias"] = {tokens[0]: float(bias) for tokens, bias in biases.items()}
    elif name == "RepetitionPenaltyLogitsProcessor":
        if one.prompt_ignore_length is not None:
            _refuse("logits_processor", f"{name} leaves a part of the prompt out")
        settings["repetition_penalty"] = one.penalty
    elif name in ("MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor"):
        if tuple(sorted(one.eos_token_id.tolist())) != stops:
            _refuse("min_new_tokens", f"{name} bars other tokens than those that end the text")
        least = one.min_length - length if name == "MinLengthLogitsProcessor" else one.min_new_tokens
        settings["min_tokens"] = max(settings.get("min_tokens", 0), least)
    elif name in ("TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper"):
        field = {"TopK": "top_k", "TopP": "top_p", "MinP": "min_p"}[name[:4]]
        settings[field] = getattr(one, field)
    elif name == "TemperatureLogitsWarper":
        settings["temperature"] = one.temperature
