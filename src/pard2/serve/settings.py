"""How the server is set up, whatever it is asked later. It imports no torch and no web framework."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pard2.engine.settings import check, check_number, flag, is_real, is_whole
from pard2.errors import Pard2Error

KEY_VARIABLE = "PARD2_API_KEY"
_GROUP = "Limits"
_LONGEST = 7 * 24 * 3600  # seconds


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Raises `Pard2Error` for what means nothing, by the field's name.

    host, port: where it listens; port 0 takes a free one.
    served_model_name: what clients call the model; None for the target's name.
    api_key: what clients must send; None for what the environment variable `KEY_VARIABLE` holds, if anything.
    protect_metrics: whether /metrics needs the key, too.
    allow_origin: web pages that may use the API from another origin; none by default.
    chat_template: a file in place of the template that the target has.
    max_waiting: answers that wait at most while all places are taken; further ones are sent away.
    max_body: bytes of a request.
    timeout: seconds that a request may take, waiting included.
    drain_seconds: time that running requests have after SIGTERM.
    max_tokens: of a chat's answer that names no limit; None for all that there is room for.
    engines: most further ones, which are made for requests that ask for another method or draft length.
    log_format, log_prompts: of the line for each request; whether it holds prompt and answer.
    """

    host: str = field(default="127.0.0.1", metadata=flag("Address to listen at; 0.0.0.0 for all of this machine's.", "--host", metavar="ADDRESS"))
    port: int = field(default=8000, metadata=flag("Port to listen at; 0 takes a free one.", "--port", metavar="N"))
    served_model_name: str | None = field(
        default=None, metadata=flag("What clients call the model; by default the target's name.", "--served-model-name", metavar="NAME")
    )
    api_key: str | None = field(
        default=None,
        repr=False,
        metadata=flag(f"What clients must send; better given as the environment variable {KEY_VARIABLE}.", "--api-key", metavar="KEY"),
    )
    protect_metrics: bool = field(default=False, metadata=flag("/metrics needs the key, too.", "--protect-metrics"))
    allow_origin: list[str] | None = field(
        default=None, metadata=flag("Web pages of this origin may use the API; may be given several times.", "--allow-origin", metavar="ORIGIN")
    )
    chat_template: Path | None = field(
        default=None, metadata=flag("A Jinja file in place of the target's chat template.", "--chat-template", metavar="FILE")
    )
    log_format: Literal["text", "json"] = field(
        default="text", metadata=flag("Form of the line for each request.", "--log-format", metavar="text|json")
    )
    log_prompts: bool = field(default=False, metadata=flag("Log prompts and answers, too.", "--log-prompts"))
    max_waiting: int = field(
        default=64, metadata=flag("Answers that may wait for a place; further requests get status 429.", "--max-waiting", metavar="N", group=_GROUP)
    )
    max_body: int = field(default=4_000_000, metadata=flag("Longest request, in bytes.", "--max-body", metavar="BYTES", group=_GROUP))
    timeout: float = field(default=600.0, metadata=flag("Longest time of a request, waiting included.", "--timeout", metavar="SECONDS", group=_GROUP))
    drain_seconds: float = field(
        default=30.0,
        metadata=flag("Time that running requests have to end after SIGTERM.", "--drain-seconds", metavar="SECONDS", group=_GROUP),
    )
    max_tokens: int | None = field(
        default=None,
        metadata=flag(
            "Longest answer of a chat that names no limit; by default what there is room for.", "--max-new-tokens", metavar="N", group=_GROUP
        ),
    )
    engines: int = field(
        default=3,
        metadata=flag(
            "Engines beside the first, for requests that name another method or draft length; 0 refuses them.", "--engines", metavar="N", group=_GROUP
        ),
    )

    def __post_init__(self) -> None:
        check_number("port", self.port, is_whole(self.port, 0, 65535), "give a number from 0 (any free one) to 65535")
        check("host", repr(self.host), bool(self.host), "give an address, such as 127.0.0.1")
        if self.api_key is None:
            object.__setattr__(self, "api_key", os.environ.get(KEY_VARIABLE))
        if self.api_key is not None:
            fits = bool(self.api_key) and self.api_key.isascii() and self.api_key.isprintable() and " " not in self.api_key
            # Never the key itself: errors end up in logs.
            if not fits:
                what = "holds more than letters, digits and signs of ASCII" if self.api_key.strip() else "is empty"
                raise Pard2Error(f"`api_key` (or {KEY_VARIABLE}) {what}; give another, or leave it away for a server without a key")
        if self.protect_metrics and self.api_key is None:
            raise Pard2Error("`protect_metrics` needs a key; give one with `api_key`")
        check("served_model_name", repr(self.served_model_name), self.served_model_name != "", "give a name, or leave it away")
        check("log_format", repr(self.log_format), self.log_format in ("text", "json"), "give text or json")
        check_number("max_waiting", self.max_waiting, is_whole(self.max_waiting, 0), "give a number of answers, 0 or more")
        check_number("max_body", self.max_body, is_whole(self.max_body, 1), "give a number of bytes")
        check_number("timeout", self.timeout, is_real(self.timeout, 0, _LONGEST) and self.timeout > 0, "give seconds, above 0 and at most a week")
        check_number("drain_seconds", self.drain_seconds, is_real(self.drain_seconds, 0, _LONGEST), "give seconds, 0 or more and at most a week")
        check_number("max_tokens", self.max_tokens, self.max_tokens is None or is_whole(self.max_tokens, 1), "give a number of tokens, at least 1")
        check_number("engines", self.engines, is_whole(self.engines, 0, 64), "give a number from 0 to 64")
