"""`--template-arg`: what the chat template gets beside the messages, and what is said where a draft was
trained with something else.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pard2.cli.console import print_note
from pard2.data.arguments import check_arguments, distinct_arguments, to_prompt, unread_arguments
from pard2.errors import Pard2Error

if TYPE_CHECKING:
    from pard2.engine.prompts import Prompt
    from pard2.models.any_draft import AnyDraft
    from pard2.models.target import Target

TemplateArgOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template-arg",
        metavar="NAME=VALUE",
        help="For the chat template, such as enable_thinking=false; a record's own `chat_template_kwargs` win. May be given several times.",
    ),
]


def parse_template_args(words: list[str] | None) -> dict[str, Any]:
    """`["enable_thinking=false"]` as names and values: JSON, or one word of YAML, or else a text.

    Raises `Pard2Error` for another form, and for a name given twice.
    """
    arguments: dict[str, Any] = {}
    for word in words or ():
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            raise Pard2Error(f"--template-arg {word!r} is not of the form NAME=VALUE, such as enable_thinking=false")
        if name in arguments:
            raise Pard2Error(f"--template-arg names {name} twice; give one value for each")
        arguments[name] = _value(text)
    return arguments


def _value(text: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    # To YAML, "note: be brief" is a mapping, and 2026-01-02 a date.
    return value if text and (text[0] in "[{" or isinstance(value, bool | int | float | str | None)) else text


def apply_template_args(texts: list[str], arguments: dict[str, Any], raw: bool) -> "list[Prompt]":
    """Each text as a prompt with these arguments. Raises `Pard2Error` where a text goes by no template."""
    if arguments and raw:
        raise Pard2Error("--raw leaves the chat template away, and --template-arg is for it; leave one of them away")
    return [to_prompt({"messages": [{"role": "user", "content": text}]}, arguments) if arguments else text for text in texts]


def check_template_args(target: "Target", draft: "AnyDraft | None", arguments: dict[str, Any], prompts: "Sequence[Prompt]") -> None:
    """Raises `Pard2Error` for an argument that the template does not read; notes what prompts say in vain, or
    a draft was not trained with.
    """
    if target.tokenizer is None:
        return
    check_arguments(target.tokenizer, arguments)
    unread = sorted({name for prompt in prompts if isinstance(prompt, dict) for name in unread_arguments(target.tokenizer, prompt)})
    if unread:
        print_note(f"the chat template reads no {', '.join(unread)}, which records give it")
    trained = None if draft is None or draft.spec is None else draft.spec.template_arguments
    others = [one for one in distinct_arguments(prompts) if trained is not None and one not in trained]
    if others:
        was, now = (" and ".join(json.dumps(one) if one else "none" for one in some) for some in (trained, others))
        print_note(f"the draft was trained with the template arguments {was}, and this is {now}; it may propose worse")
