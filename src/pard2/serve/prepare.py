"""From a request's body to what the engine decodes: read, checked, put into the template and tokenised.

It runs in a thread of its own: neither the event loop nor whoever decodes waits for it.
"""

from dataclasses import dataclass
from typing import Any

from pard2.data.arguments import check_arguments, unread_arguments
from pard2.engine.new_request import new_request
from pard2.engine.prompts import Prompt, PromptTooLong, encode_prompt
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error
from pard2.hf import Tokenizer
from pard2.reading import printable
from pard2.serve.engines import Engines, Way
from pard2.serve.errors import ApiError, refused
from pard2.serve.schema import ChatRequest, CompletionRequest, TokenizeRequest, parse
from pard2.serve.ticket import Ticket


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request that can be decoded. prompts: as text where they are to be echoed."""

    asked: ChatRequest | CompletionRequest
    ticket: Ticket
    prompts: tuple[str, ...] = ()


class Preparer:
    """model: what clients call it.

    arguments: of the chat template, for requests that name none of theirs.
    max_tokens: of a chat's answer that names no limit; None for all that there is room for.
    """

    def __init__(self, engines: Engines, model: str, arguments: dict[str, Any] | None = None, max_tokens: int | None = None) -> None:
        self._engines, self._target = engines, engines.target
        self._model, self._arguments, self._max_tokens = model, arguments or {}, max_tokens

    @property
    def tokenizer(self) -> Tokenizer:
        assert self._target.tokenizer is not None, "a server needs a tokenizer"
        return self._target.tokenizer

    def chat(self, body: bytes) -> Prepared:
        """Raises `ApiError`, as all of these do."""
        asked = parse(ChatRequest, body)
        self._check_model(asked.model)
        if asked.top_logprobs is not None and not asked.logprobs:
            raise ApiError(400, "`top_logprobs` needs `logprobs` true", param="top_logprobs")
        ids = self._conversation(asked.messages, None if asked.tool_choice == "none" else asked.tools, asked.chat_template_kwargs)
        way = self._way(asked)
        limit = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
        if limit is None:
            room = self._room(ids, way)
            limit = room if self._max_tokens is None else min(room, self._max_tokens)
        params = _params(asked, limit, (asked.top_logprobs or 0) if asked.logprobs else None)
        return Prepared(asked=asked, ticket=self._ticket([ids], way, params, "messages"))

    def completion(self, body: bytes) -> Prepared:
        asked = parse(CompletionRequest, body)
        self._check_model(asked.model)
        if asked.echo and asked.logprobs is not None:
            raise ApiError(400, "`echo` goes without `logprobs`: the prompt's tokens have none here", param="echo")
        way, params = self._way(asked), _params(asked, asked.max_tokens, asked.logprobs)
        prompts = _several(asked.prompt)
        encoded = [self._encode(prompt, True, "prompt") for prompt in prompts]
        echoed = tuple(p if isinstance(p, str) else self.tokenizer.decode(p) for p in prompts) if asked.echo else ()
        return Prepared(asked=asked, ticket=self._ticket(encoded, way, params, "prompt"), prompts=echoed)

    def tokens(self, body: bytes) -> tuple[list[int], list[str] | None]:
        """Of /tokenize: ids, and each one's text where that is asked for."""
        asked = parse(TokenizeRequest, body)
        self._check_model(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise ApiError(400, "give either `prompt` or `messages`", param="prompt")
        if asked.messages is not None:
            ids = self._conversation(asked.messages, asked.tools, asked.chat_template_kwargs)
        else:
            ids = list(self.tokenizer(asked.prompt, add_special_tokens=asked.add_special_tokens, verbose=False)["input_ids"])
        return ids, [str(token) for token in self.tokenizer.convert_ids_to_tokens(ids)] if asked.return_token_strs else None

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._model:
            shown = printable(name[:80])
            raise ApiError(404, f"there is no model {shown!r} here; this is {self._model!r}", param="model", code="model_not_found")

    def _way(self, asked: ChatRequest | CompletionRequest) -> Way:
        extension = asked.pard2
        try:
            return self._engines.way(None, None) if extension is None else self._engines.way(extension.method, extension.draft_tokens)
        except Pard2Error as error:
            raise refused(error, "pard2") from None

    def _conversation(self, messages: list[Any], tools: list[Any] | None, arguments: dict[str, Any] | None) -> list[int]:
        if self.tokenizer.chat_template is None:
            raise ApiError(
                400, "this model has no chat template: use /v1/completions, or start the server with --chat-template", code="no_chat_template"
            )
        for number, message in enumerate(messages):
            content = message.get("content") if isinstance(message, dict) else None
            for part in content if isinstance(content, list) else ():
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                if kind != "text":
                    raise ApiError(
                        400, f"`messages`[{number}] holds a part of type {printable(str(kind)[:40])!r}; only text is read", param="messages"
                    )
        record: dict[str, Any] = {"messages": messages}
        if tools:
            record["tools"] = tools
        given = self._arguments | (arguments or {})
        # What the template does not read changes nothing, and clients send it to whatever model there is.
        # Were it handed on, it might be taken for an argument of transformers, such as another template.
        unread = unread_arguments(self.tokenizer, {"chat_template_kwargs": given})
        given = {name: value for name, value in given.items() if name not in unread}
        try:
            check_arguments(self.tokenizer, given)
        except Pard2Error:
            raise ApiError(400, "`chat_template_kwargs` names what the server itself gives the template", param="chat_template_kwargs") from None
        if given:
            record["chat_template_kwargs"] = given
        return self._encode(record, False, "messages")

    def _encode(self, prompt: Prompt, raw: bool, param: str) -> list[int]:
        try:
            return encode_prompt(self._target, prompt, raw)
        except Pard2Error as error:
            raise refused(error, param) from None

    def _room(self, ids: list[int], way: Way) -> int:
        """Tokens that an answer to this prompt may have."""
        room = min(self._target.context_length - len(ids) + 1, way.cache_tokens - len(ids))
        if room < 1:
            raise refused(
                PromptTooLong(f"the prompt has {len(ids)} tokens, and {way.cache_tokens} are all that it and its answer may have"), "messages"
            )
        return room

    def _ticket(self, prompts: list[list[int]], way: Way, params: SamplingParams, param: str) -> Ticket:
        for ids in prompts:
            if len(ids) >= way.cache_tokens:
                self._room(ids, way)
        try:
            requests = [new_request(self._target, way.method, way.cache_tokens, ids, params, True, None) for ids in prompts]
        except Pard2Error as error:
            raise refused(error) from None
        return Ticket(requests, way)


def _several(prompt: str | list[Any]) -> list[Any]:
    """The prompts of a completion, each a text or token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise ApiError(400, "`prompt` is empty", param="prompt")
    if all(isinstance(part, int) for part in prompt):
        return [prompt]
    if not (all(isinstance(part, str) for part in prompt) or all(isinstance(part, list) for part in prompt)):
        raise ApiError(400, "`prompt` is a text, a list of token ids, or a list of either", param="prompt")
    return prompt


def _params(asked: ChatRequest | CompletionRequest, max_tokens: int, logprobs: int | None) -> SamplingParams:
    """How a request is sampled."""
    try:
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=asked.min_tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            min_p=asked.min_p,
            repetition_penalty=asked.repetition_penalty,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            logit_bias=_biases(asked.logit_bias),
            seed=asked.seed,
            n=asked.n,
            stop=asked.stop,
            stop_token_ids=asked.stop_token_ids,
            include_stop_str_in_output=asked.include_stop_str_in_output,
            ignore_eos=asked.ignore_eos,
            logprobs=logprobs,
        )
    except Pard2Error as error:
        raise refused(error) from None


def _biases(given: dict[str, float] | None) -> dict[int, float] | None:
    """JSON names token ids by texts."""
    if given is None:
        return None
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError:
        raise ApiError(400, "`logit_bias` has a name that is no token id", param="logit_bias") from None
