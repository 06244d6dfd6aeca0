"""From what a caller calls a prompt to token ids that the target can read."""

from pard2.data.chat import prompt_ids
from pard2.data.records import Message
from pard2.errors import Pard2Error
from pard2.models.target import Target

Prompt = str | list[Message] | list[int]


def encode_prompt(target: Target, prompt: Prompt, raw: bool = False) -> list[int]:
    """Token ids of a text, a list of messages, or a list of token ids (then no tokenizer is needed).

    raw: take a text as it is, in place of a user's turn in the chat template. Raises `Pard2Error` for a prompt that is empty,
    longer than the target's context, or holds ids that the target does not know.
    """
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise Pard2Error("the prompt is empty; say something with -p")
    if isinstance(prompt, list) and isinstance(prompt[0], int):
        ids = prompt
        wrong = next((i for i in ids if not 0 <= i < target.vocab_size), None)
        if wrong is not None:
            raise Pard2Error(f"the prompt holds token id {wrong}; {target.name!r} knows 0 to {target.vocab_size - 1}")
    else:
        ids = _tokenize(target, prompt, raw)
    if len(ids) > target.context_length:
        raise Pard2Error(f"the prompt has {len(ids)} tokens, the context of {target.name!r} is {target.context_length}; shorten the prompt")
    return ids


def _tokenize(target: Target, prompt: str | list[Message], raw: bool) -> list[int]:
    if target.tokenizer is None:
        raise Pard2Error(f"{target.name!r} has no tokenizer; give the prompt as token ids")
    if isinstance(prompt, str):
        if raw:
            return target.tokenizer(prompt)["input_ids"]  # with the special tokens that the model expects, such as BOS
        prompt = [{"role": "user", "content": prompt}]
    return prompt_ids(target.tokenizer, prompt)
