"""`pard2 serve`: OpenAI's API over one target and its draft, until a signal ends it."""

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import typer

from pard2.cli.console import print_note, working
from pard2.cli.flags import with_records
from pard2.cli.options import Models
from pard2.cli.template_args import TemplateArgOption, check_template_args, parse_template_args
from pard2.data.arguments import check_template
from pard2.engine.options import EngineOptions
from pard2.errors import Pard2Error
from pard2.reading import read_text
from pard2.serve.address import open_socket, url_of
from pard2.serve.settings import ServeOptions
from pard2.units import counted, size

if TYPE_CHECKING:
    from pard2.engine.engine import Engine

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


@with_records
def serve(models: Models, serving: ServeOptions, options: EngineOptions, template_arguments: TemplateArgOption = None) -> None:
    """Serve OpenAI's API: the target's own text, faster; many requests share each pass.

    The first Ctrl-C or SIGTERM lets running requests end, the second ends at once.
    """
    if missing := [name.replace("_", "-") for name in _PACKAGES if find_spec(name) is None]:
        raise Pard2Error(f"`pard2 serve` needs the package {missing[0]}: pip install 'pard2[serve]'")
    arguments = parse_template_args(template_arguments)
    template = None if serving.chat_template is None else read_text(serving.chat_template)
    if template is not None:
        check_template(template, f"`chat_template` {serving.chat_template}")
    opened = open_socket(serving.host, serving.port)  # before the long load
    with opened:
        engine = models.load(options)
        _set_template(engine, template, arguments)
        _warm_up(engine)
        from pard2.serve.engines import Engines, public_name
        from pard2.serve.server import serve as run
        from pard2.serve.service import Service

        name = serving.served_model_name or public_name(engine.target.name)
        service = Service(Engines(engine, serving.engines), name, serving, arguments)
        url = url_of(opened)
        run(service, opened, lambda: _tell(engine, name, url, serving))
    print_note(f"stopped; {counted(service.cut_off, 'request')} cut off" if service.cut_off else "stopped")
    if service.cut_off:
        raise typer.Exit(1)


def _set_template(engine: "Engine", template: str | None, arguments: dict[str, Any]) -> None:
    tokenizer = engine.target.tokenizer
    if tokenizer is None:
        return  # the service refuses it
    if template is not None:
        tokenizer.chat_template = template
    if tokenizer.chat_template is None:
        print_note(f"{engine.target.name!r} has no chat template: /v1/completions alone is served; --chat-template gives it one")
    else:
        check_template_args(engine.target, engine.draft, arguments, [{"chat_template_kwargs": arguments}])


def _warm_up(engine: "Engine") -> None:
    """The first pass imports and compiles: no request should wait for that."""
    from pard2.engine.sampling import SamplingParams

    with working("warming up"):
        engine.generate([[0, 0]], SamplingParams(max_tokens=4, ignore_eos=True))


def _tell(engine: "Engine", name: str, url: str, serving: ServeOptions) -> None:
    """What the server holds, and how it is reached."""
    from pard2.engine.capacity import position_bytes

    target, draft = engine.target, engine.draft
    cache = engine.cache_tokens * sum(position_bytes(model.config, model.decoder_dtype) for model in (target, draft) if model is not None)
    drafted = "" if draft is None else f", drafted by {draft.name}"
    print_note(
        f"{name}: {target.name} on {target.device}{drafted} ({engine.method}); {_held(engine)} held",
        f"{counted(engine.options.max_batch, 'place')}, a cache of {engine.cache_tokens:,} tokens ({size(cache)} when it is full), "
        f"longest context {target.context_length:,} tokens",
        f"{url}/v1  ({'with a key' if serving.api_key else 'without a key'}); Ctrl-C ends it",
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{_KEY * bool(serving.api_key)} "
        f"""-d '{{"messages": [{{"role": "user", "content": "Hello"}}], "temperature": 0}}'""",
    )
    if serving.api_key is None and serving.host not in ("127.0.0.1", "::1", "localhost"):
        print_note(f"note: whoever reaches {serving.host} may use this server; --api-key asks for a key")


_KEY = " -H 'Authorization: Bearer KEY'"


def _held(engine: "Engine") -> str:
    """Memory that weights and all else take now."""
    import torch

    if engine.target.device.type == "cuda":
        return size(torch.cuda.memory_allocated(engine.target.device))
    with open("/proc/self/statm") as file:
        return size(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
