"""The prompts of a suite as token ids; before a later turn comes what the target itself answered."""

from pard2.bench.suites import Suite
from pard2.data.records import Message
from pard2.engine.engine import Engine
from pard2.engine.methods import PLAIN
from pard2.engine.prompts import encode_prompt
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error
from pard2.models.target import Target


def encode_suite(suite: Suite, target: Target, max_new_tokens: int) -> list[list[int]]:
    """Token ids of each prompt.

    max_new_tokens: of an answer that comes before a later turn. It is the greedy one of plain decoding,
        whatever is measured later, so that all configurations read the same prompts.

    Raises `Pard2Error`, with the record's id, for a prompt that the target cannot take.
    """
    if not suite.follows:
        return [_encode(target, *named) for named in zip(suite.ids, suite.prompts, strict=True)]
    engine = Engine(target, None, PLAIN, max_batch=1)
    before = set(suite.follows)
    prompts: list[list[int]] = []
    conversations: list[list[Message]] = []  # of each prompt with its answer, where one is asked for
    for number, (record_id, own, other) in enumerate(zip(suite.ids, suite.prompts, suite.follows, strict=True)):
        turn = own["messages"] if isinstance(own, dict) else own
        more = {key: value for key, value in own.items() if key != "messages"} if isinstance(own, dict) else {}
        messages = turn if other is None else [*conversations[other], *turn]
        prompts.append(_encode(target, record_id, {"messages": messages, **more} if more else messages))
        answer = []
        if number in before:
            [completion] = engine.generate([prompts[-1]], SamplingParams(max_tokens=max_new_tokens))
            answer = [{"role": "assistant", "content": completion.text}]
        conversations.append([*messages, *answer])
    return prompts


def _encode(target: Target, record_id: str, prompt: list[Message] | dict) -> list[int]:
    try:
        return encode_prompt(target, prompt)
    except Pard2Error as error:
        raise Pard2Error(f"`suites`: record {record_id}: {error}") from None
