"""What a request may hold: its fields, and by which name anything else is refused.

A field that would change the answer, and which this server does not know, is an error; one that changes
nothing is taken and not looked at. A field that is null counts as left away. Names are OpenAI's, and vLLM's
for what that API has not.
"""

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pard2.engine.sampling import MOST_LOGPROBS
from pard2.reading import parse_json, printable
from pard2.serve.errors import ApiError

Kind = TypeVar("Kind", bound=BaseModel)

_NESTED = ("stream_options", "pard2")  # fields that have fields
_CONSTRAINED = "answers are not made to follow a form"
# Why some well-known fields are refused; each other unknown one is, too.
_UNSUPPORTED = {
    "functions": "give `tools`",
    "function_call": "give `tools`",
    "audio": "answers are text",
    "reasoning_effort": "give what the chat template reads in `chat_template_kwargs`",
    "chat_template": "the template is chosen when the server is started, with --chat-template",
    "use_beam_search": "answers are sampled, or greedy",
    "prompt_logprobs": "log-probabilities are those of the answer",
    "suffix": "a text is only continued at its end",
} | dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "grammar", "json_schema"), _CONSTRAINED)


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class Extension(_Fields):
    """The field `pard2`, which no other server has.

    method, draft_tokens: how this answer is drafted; its text is the same.
    trace: say which tokens the draft proposed, and how it went.
    """

    method: str | None = None
    draft_tokens: int | Literal["auto", "full"] | None = None
    trace: bool = False


class StreamOptions(_Fields):
    include_usage: bool = False
    include_obfuscation: bool = False  # padding against eavesdroppers; there is none


class _Ignored(_Fields):
    """Fields of OpenAI's API that change nothing of an answer."""

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prediction: Any = None  # a guess at the answer, for speed alone; the draft guesses here
    parallel_tool_calls: Any = None


class _Sampled(_Ignored):
    """What chats and completions have in common."""

    model: str | None = None
    n: int = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: Literal[True] = True
    best_of: Literal[1] | None = None
    pard2: Extension | None = None

    @property
    def trace(self) -> bool:
        return self.pard2 is not None and self.pard2.trace

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(_Sampled):
    """/v1/chat/completions."""

    messages: list[Any] = Field(min_length=1)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    tools: list[Any] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[Literal["text"]] | None = None
    echo: Literal[False] = False
    add_generation_prompt: Literal[True] = True
    continue_final_message: Literal[False] = False
    add_special_tokens: Literal[False] = False


class CompletionRequest(_Sampled):
    """/v1/completions. prompt: a text, token ids, or a list of either."""

    prompt: str | list[Any]
    max_tokens: int = 16
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    echo: bool = False
    response_format: dict[str, Any] | None = None
    add_special_tokens: Literal[True] = True


class TokenizeRequest(_Fields):
    """/tokenize, as vLLM has it: a text or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: Literal[True] = True
    return_token_strs: bool = False


class DetokenizeRequest(_Fields):
    """/detokenize, as vLLM has it."""

    model: str | None = None
    tokens: list[int]


def parse(kind: type[Kind], body: bytes) -> Kind:
    """A request out of its body. Raises `ApiError` that names the first field which is wrong."""
    try:
        value = parse_json(body)
    except ValueError as error:
        raise ApiError(400, f"the body {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body is no JSON object")
    given = {name: field for name, field in value.items() if field is not None}
    _check_forms(given)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _refusal(error) from None


def _check_forms(given: dict[str, Any]) -> None:
    """Refuse, with a reason, what the types alone would refuse without one."""
    form = given.get("response_format")
    if isinstance(form, dict) and form.get("type") != "text":
        shown = printable(str(form.get("type"))[:40])
        raise ApiError(400, f"`response_format` of type {shown!r} is not supported: {_CONSTRAINED}", param="response_format")
    if given.get("tool_choice") not in (None, "none", "auto"):
        raise ApiError(400, "`tool_choice` is none or auto: the model is not made to call a tool", param="tool_choice")


def _refusal(error: ValidationError) -> ApiError:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    # An unknown field first: what else is wrong may follow from it.
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    # Behind the name, pydantic says which form of a value it had tried; that is no part of the request.
    loc = [part for place, part in enumerate(first["loc"][:2]) if place == 0 or isinstance(part, int) or first["loc"][0] in _NESTED]
    path = printable(".".join(map(str, loc)))[:80]
    name = path.partition(".")[0]
    if first["type"] == "extra_forbidden":
        why = _UNSUPPORTED.get(name, "this server does not know it, and it might change the answer; leave it away")
        return ApiError(400, f"`{path}` is not supported: {why}", param=path, code="unsupported_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"`{path}` is missing", param=path, code="missing_required_parameter")
    said = first["msg"][:1].lower() + first["msg"][1:]
    return ApiError(400, f"`{name}`: {said}", param=path, code="invalid_value")
