"""`pard2 data`: conversations that the target wrote or answered."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pard2.cli import cache, prepare, split
from pard2.cli.console import print_note, record_progress, working
from pard2.cli.flags import Flags, with_records
from pard2.cli.options import ForceOption, Models, SeedOption
from pard2.cli.template_args import TemplateArgOption, check_template_args, parse_template_args
from pard2.engine.methods import PLAIN
from pard2.engine.options import EngineOptions
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error
from pard2.files import check_output
from pard2.reading import parse_json

if TYPE_CHECKING:
    from pard2.data.answers import Answer, Answerer, Replier
    from pard2.data.records import Record, RecordWriter
    from pard2.engine.engine import Engine

app = typer.Typer(help="Make and inspect training data.", no_args_is_help=True)
app.command("prepare")(prepare.prepare)
app.command("preview")(prepare.preview)
app.command("split")(split.split)
app.command("cache")(cache.cache)

# Many sequences at once leave a draft little to win, so none is taken unasked.
_DRAFT_HELP = "A draft that the target has already: the same answers, faster where batches are small."


@dataclass(frozen=True, kw_only=True)
class Output:
    """A file of records, which the same command goes on with."""

    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="JSONL file; one that this work has begun is continued.")]
    force: ForceOption = False


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is to be answered."""

    source: Annotated[
        Path, typer.Option("-i", "--input", metavar="SOURCE", help="Prompts or conversations: a file of JSON, CSV or Parquet, or a data set.")
    ]
    template_arguments: TemplateArgOption = None


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Who answers in place of a target that is loaded here.

    model: what the endpoints call the target; None for the name that it has here.
    api_key: name of the environment variable that holds the key.
    """

    endpoint: Annotated[
        list[str] | None,
        typer.Option("--endpoint", metavar="URL", help="Let this server answer, such as http://host:8000/v1; may be given several times."),
    ] = None
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="What the endpoint calls the target; by default what -t says.")] = None
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=1024, help="Requests to all endpoints together at a time.")] = 32
    api_key: Annotated[str | None, typer.Option("--api-key-env", metavar="VAR", help="The environment variable that holds the endpoint's key.")] = (
        None
    )
    timeout: Annotated[float, typer.Option("--timeout", min=1.0, help="Seconds that an endpoint may stay silent over a request.")] = 600.0
    retries: Annotated[int, typer.Option("--retries", min=0, help="Further tries of a request that failed for a reason that may pass.")] = 5
    extra_body: Annotated[
        str | None, typer.Option("--extra-body", metavar="JSON", help="Fields that each request to an endpoint shall hold beside the usual ones.")
    ] = None

    def replier(self, target: str, settings: dict[str, Any]) -> "Replier":
        """The endpoints, once they have shown that they can answer.

        Without torch, which takes seconds to import and has nothing to do there.
        """
        from pard2.data.endpoint import Endpoints

        assert self.endpoint is not None
        key = _environment("--api-key-env", self.api_key)
        limits: dict[str, Any] = {"concurrency": self.concurrency, "timeout": self.timeout, "retries": self.retries}
        servers = Endpoints(self.endpoint, self.model or target, settings, api_key=key, **limits)
        servers.check()
        return servers.reply


@app.command()
@with_records
def synthesize(
    models: Annotated[Models, Flags("target", "dtype", "device", target=...)],
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=10**7, help="Prompts that the file shall hold.")],
    file: Output,
    params: Annotated[
        SamplingParams,
        Flags(
            *("max_tokens", "temperature", "top_p"),
            help={
                "max_tokens": "Longest prompt, in tokens, 2 or more; longer ones are thrown away.",
                "temperature": "Above 0; higher is more varied and less sensible.",
            },
            temperature=1.0,
            top_p=0.95,
        ),
    ],
    options: Annotated[EngineOptions, Flags("max_batch", help={"max_batch": "Sequences decoded at once."}, max_batch=32)],
    seed: SeedOption = 0,
    template_arguments: TemplateArgOption = None,
) -> None:
    """Let a chat model write the user's part itself: prompts out of nothing."""
    if params.greedy:
        raise Pard2Error("--temperature must be above 0 to synthesize: greedy text would be the same prompt each time")
    if params.max_tokens < 2:
        raise Pard2Error(f"--max-new-tokens {params.max_tokens}: at least 2 are needed, a prompt and its end")
    arguments, output = parse_template_args(template_arguments), file.output
    with working("importing torch"):
        from pard2.data.synthesize import synthesize as run

    with _resumable(file, lambda record_id: record_id.startswith("synthetic-"), "records that synthesize did not write") as writer:
        done = len(writer.done)
        print_note(f"{max(0, count - done):,} prompts of up to {params.max_tokens} tokens to write to {output}, {done:,} already there")
        if done >= count:
            return
        engine = models.load(dataclasses.replace(options, method=PLAIN))
        with record_progress("prompts", count, done, lambda: engine.totals) as advance:
            answer = _answerer(engine, params)
            run(engine.target, count, writer, answer, batch_size=options.max_batch, seed=seed, arguments=arguments, progress=advance)
    print_note(f"{output}: {count:,} prompts; next: pard2 data regenerate -t {models.target} -i {output} -o answers.jsonl")


@app.command()
@with_records
def regenerate(
    context: typer.Context,
    models: Annotated[Models, Flags("target", "draft", "dtype", "device", help={"draft": _DRAFT_HELP}, target=...)],
    asked: Source,
    file: Output,
    params: Annotated[SamplingParams, Flags("max_tokens", "temperature", "top_p", max_tokens=512)],
    options: Annotated[EngineOptions, Flags("max_batch", help={"max_batch": "Sequences decoded at once."}, max_batch=32)],
    servers: Servers,
    seed: SeedOption = 0,
) -> None:
    """Answer prompts with the target, loaded here or served elsewhere: what a draft must be trained on."""
    elsewhere = bool(servers.endpoint)
    if not servers.timeout <= 86_400:  # nan, too
        raise Pard2Error(f"--timeout {servers.timeout:g}: at most 86400 (a day)")
    _refuse_given(context, _HERE_ALONE if elsewhere else _ENDPOINT_ALONE, "does not go with --endpoint" if elsewhere else "needs --endpoint")
    from pard2.data.arguments import with_arguments
    from pard2.data.records import read_records
    from pard2.data.regenerate import answer_settings, check_same_run, failures_path, list_failures
    from pard2.data.regenerate import regenerate as run

    output, source = file.output, asked.source
    for path in (output, failures_path(output)):
        check_output(path, (source, models.target, models.draft))
    arguments, extra_body = parse_template_args(asked.template_arguments), _json_object("--extra-body", servers.extra_body)
    settings = answer_settings(params.max_tokens, params.temperature, params.top_p, seed, extra_body, arguments)
    records = [with_arguments(record, arguments) for record in read_records(source)]
    ids = {record["id"] for record in records}
    with _resumable(file, lambda record_id: record_id in ids, f"records that are not in {source}") as writer:
        check_same_run(writer, models.target, settings, records)
        done = len(writer.done)
        most = (len(records) - done) * params.max_tokens
        print_note(
            f"{len(records) - done:,} prompts to answer with up to {params.max_tokens} tokens each in {output}, {done:,} already there; "
            f"at most {most:,} new tokens, about {most * (5 if elsewhere else 12) / 1e6:,.1f} MB"
        )
        if done == len(records):
            list_failures(output, [])
            return
        engine = None if elsewhere else _engine_here(models, options, arguments, records)
        replier = servers.replier(models.target, settings) if engine is None else _replier_here(engine, params, settings)
        with record_progress("prompts", len(records), done, None if engine is None else lambda: engine.totals) as advance:
            failures = run(records, writer, replier, models.target, settings, progress=advance)
        answered = len(writer.done)
    _tell_failures(file, source, len(records), answered, failures)


def _engine_here(models: Models, options: EngineOptions, arguments: dict[str, Any], records: "list[Record]") -> "Engine":
    with working("importing torch"):
        from pard2.checkpoints.meta import meta_target
        from pard2.checkpoints.twin import check_decodable

    check_decodable(meta_target(models.target).model, models.target)  # said before its weights are read
    engine = models.load(options if models.draft is not None else dataclasses.replace(options, method=PLAIN))
    check_template_args(engine.target, engine.draft, arguments, records)
    return engine


def _replier_here(engine: "Engine", params: SamplingParams, settings: dict[str, Any]) -> "Replier":
    from pard2.data.local import local_replier

    room = min(engine.target.context_length, engine.cache_tokens)
    return local_replier(engine.target, _answerer(engine, params), settings, room)


def _tell_failures(file: Output, source: Path, records: int, answered: int, failures: list[dict[str, str]]) -> None:
    """Raises `Pard2Error` where nothing could be answered."""
    from pard2.data.regenerate import failures_path

    for failure in failures[:5]:
        print_note(f"not answered: {failure['id']}: {failure['error']}")
    if not answered:
        raise Pard2Error(f"none of the {records:,} prompts of {source} could be answered: {failures[0]['error']}")
    listed = f", listed in {failures_path(file.output)}; the same command tries them again" if failures else ""
    print_note(f"{file.output}: {answered:,} of {records:,} answered, {len(failures):,} could not be{listed}")


_HERE_ALONE = ("draft", "max_batch", "dtype", "device", "revision")
_ENDPOINT_ALONE = ("model", "concurrency", "api_key", "timeout", "retries", "extra_body")


def _refuse_given(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Raises `Pard2Error` for the first of these options that the command line gives,
    be it by its default value."""
    flags = {option.name: option.opts[0] for option in context.command.params}
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise Pard2Error(f"{flags[name]} {why}")


def _json_object(flag: str, text: str | None) -> dict[str, Any] | None:
    try:
        value = None if text is None else parse_json(text)
    except ValueError as error:
        raise Pard2Error(f"{flag} {error}") from None
    if value is not None and not isinstance(value, dict):
        raise Pard2Error(f"""{flag} {text!r} is not a JSON object such as '{{"top_k": -1}}'""")
    return value


def _environment(flag: str, name: str | None) -> str | None:
    """The variable's value. Raises `Pard2Error` where the environment has none of that name."""
    if name is None:
        return None
    value = os.environ.get(name, "").strip()
    if not value:
        raise Pard2Error(f"{flag} {name}: the environment holds no such variable")
    return value


def _answerer(engine: "Engine", params: "SamplingParams") -> "Answerer":
    def answer(prompts: list[list[int]], seeds: list[int]) -> Iterator["Answer"]:
        return engine.completions(prompts, [dataclasses.replace(params, seed=seed) for seed in seeds])

    return answer


@contextmanager
def _resumable(file: Output, ours: Callable[[str], bool], foreign: str) -> Iterator["RecordWriter"]:
    """The open output, checked before the long work begins; Ctrl-C leaves it whole and says so."""
    from pard2.data.records import RecordWriter

    output = file.output
    with RecordWriter(output, file.force) as writer:
        if not all(map(ours, writer.done)):
            raise Pard2Error(f"{output} exists and holds {foreign}; name another file with -o, or give --force to replace it")
        try:
            yield writer
        except KeyboardInterrupt:
            if writer.done or not output.exists():
                print_note(f"{len(writer.done):,} records are in {output}; {writer.way_on}")
            raise
