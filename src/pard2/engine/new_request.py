"""A request out of what the caller gives, checked before it waits."""

import secrets

from pard2.engine.prompts import Prompt, encode_prompt
from pard2.engine.request import OnStep, Request
from pard2.engine.sampling import SamplingParams
from pard2.engine.sequence import Sequence
from pard2.engine.text import TextStream
from pard2.errors import Pard2Error
from pard2.models.target import Target


def new_request(
    target: Target, method: str, cache_tokens: int, prompt: Prompt, params: SamplingParams | None, raw: bool, on_step: OnStep | None
) -> Request:
    """A prompt and its settings as this request's own: the caller cannot change them afterwards.

    cache_tokens: places that prompt and answer must fit into.

    Raises `Pard2Error` for what the target cannot answer.
    """
    params = SamplingParams() if params is None else params
    if not isinstance(params, SamplingParams):
        raise Pard2Error(f"`params` are SamplingParams(...), and not {type(params).__name__}")
    ids = encode_prompt(target, prompt, raw)
    params.check_vocabulary(target.vocab_size)
    tokenizer = target.tokenizer
    if params.stop and tokenizer is None:
        raise Pard2Error(f"`stop` needs a tokenizer, which {target.name!r} lacks")
    # The last token is never read by the target, so it may lie just past the context.
    limit = min(params.max_tokens, target.context_length - len(ids) + 1)
    if len(ids) + limit > cache_tokens:
        raise Pard2Error(
            f"a prompt of {len(ids)} tokens and an answer of {limit} do not fit the cache of {cache_tokens}; "
            "give a smaller `max_tokens` or a larger `cache_tokens`"
        )
    named = frozenset() if params.ignore_eos else target.eos_token_ids
    ends = frozenset(end for end in (*named, *params.stop_token_ids) if 0 <= end < target.vocab_size)  # a config may name others
    if params.min_tokens and len(ends) >= target.vocab_size:
        raise Pard2Error("`min_tokens`: every token of the vocabulary ends the answer; give fewer `stop_token_ids`")
    seed = secrets.randbits(63) if params.seed is None else params.seed
    sequences = [
        Sequence(
            prompt=ids,
            params=params,
            seed=seed,
            index=index,
            max_new_tokens=limit,
            stop_token_ids=ends,
            text=None if tokenizer is None else TextStream(tokenizer, tuple(params.stop), params.include_stop_str_in_output, params.min_tokens),
        )
        for index in range(params.n)
    ]
    return Request(sequences, method, on_step)
