"""Records as options, and parameters as flags.

A command takes whole records, and each of their fields becomes an option. A message that names a parameter,
as in `max_tokens`, names the flag of that parameter to whoever uses the command line.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import MISSING, Field, fields, is_dataclass
from inspect import Parameter
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from pard2.engine.options import EngineOptions
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error


class Flags:
    """Which fields of a record a command shows.

    As in `params: Annotated[SamplingParams, Flags("seed", "top_p", seed=0)]`.

    names: all of them where none is given; what is not shown keeps the record's default.
    help: for fields that mean something of their own here.
    defaults: where they are not the record's; `...` for an option that must be given.
    """

    def __init__(self, *names: str, help: dict[str, str] | None = None, **defaults: Any) -> None:
        self.names = names
        self.help = help or {}
        self.defaults = defaults

    def shown(self, record: type) -> list[Field]:
        """The fields of a record that the command shows."""
        return [field for field in fields(record) if not self.names or field.name in self.names]


def with_records(command: Callable[..., None]) -> Callable[..., None]:
    """The command with options in place of its records, one for each field shown;
    it is called with the records.

    A record is a dataclass whose fields are declared with `settings.flag`, or annotated as typer wants it.
    """
    parameters: list[Parameter] = []
    records: dict[str, tuple[type, list[Field]]] = {}
    for parameter in inspect.signature(command).parameters.values():
        found = _record(parameter.annotation)
        if found is None:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))  # of which those without a default may stand anywhere
            continue
        record, flags = found
        records[parameter.name] = record, flags.shown(record)
        parameters += [_option(field, flags) for field in flags.shown(record)]

    def run(**values: Any) -> None:
        for name, (record, shown) in records.items():
            values[name] = record(**{field.name: _read(field, values.pop(field.name)) for field in shown})
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def _record(annotation: Any) -> tuple[type, Flags] | None:
    record, *more = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if not is_dataclass(record):
        return None
    return record, next((one for one in more if isinstance(one, Flags)), Flags())  # type: ignore[return-value]


def _option(field: Field, flags: Flags) -> Parameter:
    default = flags.defaults.get(field.name, Parameter.empty if field.default is MISSING else field.default)
    annotation: Any = field.type
    if "flag" in field.metadata:
        flag = field.metadata["flag"]
        words = _READERS.get(field.name)
        kind = words[0] if words else str if get_origin(field.type) is Literal else field.type
        help = flags.help.get(field.name, flag.help)
        annotation = Annotated[kind, typer.Option(*flag.names, metavar=flag.metavar, help=help, rich_help_panel=flag.group)]
        default = default or None if words and kind is not str else default  # typer takes no empty tuple
    elif field.name in flags.help:
        kind, option = get_args(field.type)
        annotation = Annotated[kind, copy(option)]
        get_args(annotation)[1].help = flags.help[field.name]
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _read(field: Field, value: Any) -> Any:
    return _READERS[field.name][1](value) if "flag" in field.metadata and field.name in _READERS else value


def number_or_word(text: str) -> int | str:
    """`8` as a number; what is none, as it is: the record refuses it."""
    try:
        return int(text)
    except ValueError:
        return text


def parse_logit_bias(words: list[str] | None) -> dict[int, float]:
    """`["42=-100", "7=1.5"]` as biases by token id.

    Raises `Pard2Error` for another form, and for a token named twice.
    """
    biases: dict[int, float] = {}
    for word in words or ():
        token, _, bias = word.partition("=")
        try:
            number, value = int(token), float(bias)
        except ValueError:
            raise Pard2Error(f"`logit_bias` {word!r} is not of the form ID=BIAS, such as 42=-100") from None
        if number in biases:
            raise Pard2Error(f"`logit_bias` names token {number} twice; give one bias for each")
        biases[number] = value
    return biases


# Fields that the command line gives in another form: the form, and what makes the value of it.
_READERS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "draft_tokens": (str, number_or_word),
    "tree": (str, number_or_word),
    "logit_bias": (list[str] | None, parse_logit_bias),
    "stop_token_ids": (list[int] | None, lambda words: tuple(words or ())),
    "stop": (list[str] | None, lambda words: tuple(words or ())),
}

_DECLARED = {field.name: field.metadata["flag"].names[0].split("/")[0] for record in (SamplingParams, EngineOptions) for field in fields(record)}
_flags: dict[str, str] = {}  # of the command that runs


def speak_flags_of(options: Iterable[Any]) -> None:
    """From now on messages name these options of a command.

    They are known by the names of its parameters, and by those of the settings that they stand for.
    """
    own = {option.name: option.opts[0] for option in options if option.opts[0].startswith("-")}
    flags = {flag for option in options for flag in option.opts}
    _flags.clear()
    _flags.update({name: flag for name, flag in _DECLARED.items() if flag in flags} | own)


def speak_fields() -> None:
    """From now on messages name the fields of a run's file for the parameters that they decide."""
    sections = {"data": ("max_length", "on_long"), "draft": ("layers", "mask_token"), "loop": ("device",), "target": ("dtype", "revision")}
    _flags.update({name: f"{section}.{name}" for section, names in sections.items() for name in names})


def to_flags(message: str) -> str:
    """The message with flags in place of the names in backticks that are options of the command."""
    return re.sub(r"`(\w+)`", lambda match: _flags.get(match[1], match[0]), message)
