"""`pard2 data`: conversations that the target wrote or answered."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pard2.cli import cache, prepare
from pard2.cli.console import print_note, record_progress, working
from pard2.cli.options import BatchSizeOption, DeviceOption, DtypeOption, ForceOption, SeedOption, TargetOption, TopPOption, choose_draft
from pard2.cli.template_args import TemplateArgOption, check_template_args, parse_template_args
from pard2.errors import Pard2Error
from pard2.files import check_output
from pard2.reading import parse_json

if TYPE_CHECKING:
    from pard2.data.answers import Answer, Answerer, Replier
    from pard2.data.records import RecordWriter
    from pard2.engine.engine import Engine
    from pard2.engine.sampling import SamplingParams

app = typer.Typer(help="Make and inspect training data.", no_args_is_help=True)
app.command("prepare")(prepare.prepare)
app.command("preview")(prepare.preview)
app.command("cache")(cache.cache)

OutputOption = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="JSONL file; one that this work has begun is continued.")]
# Many sequences at once leave a draft little to win, so none is taken unasked.
AnsweringDraftOption = Annotated[
    str | None,
    typer.Option("-d", "--draft", metavar="DRAFT", help="A draft that the target has already: the same answers, faster where batches are small."),
]


@app.command()
def synthesize(
    target: TargetOption,
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=10**7, help="Prompts that the file shall hold.")],
    output: OutputOption,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=2, help="Longest prompt, in tokens; longer ones are thrown away.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", help="Above 0; higher is more varied and less sensible.")] = 1.0,
    top_p: TopPOption = 0.95,
    batch_size: BatchSizeOption = 32,
    seed: SeedOption = 0,
    template_arg: TemplateArgOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    force: ForceOption = False,
) -> None:
    """Let a chat model write the user's part itself: prompts out of nothing."""
    if temperature <= 0:
        raise Pard2Error("--temperature must be above 0 to synthesize: greedy text would be the same prompt each time")
    arguments = parse_template_args(template_arg)
    with working("importing torch"):
        from pard2.data.synthesize import synthesize as run
        from pard2.engine.engine import Engine
        from pard2.engine.sampling import SamplingParams

    params = SamplingParams(max_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    with _resumable(output, force, lambda record_id: record_id.startswith("synthetic-"), "records that synthesize did not write") as writer:
        done = len(writer.done)
        print_note(f"{max(0, count - done):,} prompts of up to {max_new_tokens} tokens to write to {output}, {done:,} already there")
        if done >= count:
            return
        with working(f"loading {target}"):
            engine = Engine.from_pretrained(target, dtype=dtype, device=device, max_batch=batch_size)
        with record_progress("prompts", count, done) as advance:
            answer = _answerer(engine, params)
            run(engine.target, count, writer, answer, batch_size=batch_size, seed=seed, arguments=arguments, progress=advance)
    print_note(f"{output}: {count:,} prompts; next: pard2 data regenerate -t {target} -i {output} -o answers.jsonl")


@app.command()
def regenerate(
    context: typer.Context,
    target: TargetOption,
    source: Annotated[
        Path, typer.Option("-i", "--input", metavar="SOURCE", help="Prompts or conversations: a file of JSON, CSV or Parquet, or a data set.")
    ],
    output: OutputOption,
    draft: AnsweringDraftOption = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 0.0,
    top_p: TopPOption = 1.0,
    batch_size: BatchSizeOption = 32,
    seed: SeedOption = 0,
    template_arg: TemplateArgOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    force: ForceOption = False,
    endpoint: Annotated[
        list[str] | None,
        typer.Option("--endpoint", metavar="URL", help="Let this server answer, such as http://host:8000/v1; may be given several times."),
    ] = None,
    served_model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="What the endpoint calls the target; by default what -t says.")
    ] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=1024, help="Requests to all endpoints together at a time.")] = 32,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="VAR", help="The environment variable that holds the endpoint's key.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=1.0, help="Seconds that an endpoint may stay silent over a request.")] = 600.0,
    retries: Annotated[int, typer.Option("--retries", min=0, help="Further tries of a request that failed for a reason that may pass.")] = 5,
    extra_body: Annotated[
        str | None, typer.Option("--extra-body", metavar="JSON", help="Fields that each request to an endpoint shall hold beside the usual ones.")
    ] = None,
) -> None:
    """Answer prompts with the target, loaded here or served elsewhere: what a draft must be trained on."""
    if not timeout <= 86_400:  # nan, too
        raise Pard2Error(f"--timeout {timeout:g}: at most 86400 (a day)")
    _refuse_given(context, _HERE_ALONE if endpoint else _ENDPOINT_ALONE, "does not go with --endpoint" if endpoint else "needs --endpoint")
    from pard2.data.arguments import with_arguments
    from pard2.data.records import read_records
    from pard2.data.regenerate import answer_settings, check_same_run, failures_path, list_failures
    from pard2.data.regenerate import regenerate as run
    from pard2.engine.sampling import SamplingParams

    for path in (output, failures_path(output)):
        check_output(path, (source, target, draft))
    params = SamplingParams(max_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    arguments = parse_template_args(template_arg)
    settings = answer_settings(max_new_tokens, temperature, top_p, seed, _json_object("--extra-body", extra_body), arguments)
    records = [with_arguments(record, arguments) for record in read_records(source)]
    ids = {record["id"] for record in records}
    with _resumable(output, force, lambda record_id: record_id in ids, f"records that are not in {source}") as writer:
        check_same_run(writer, target, settings, records)
        done = len(writer.done)
        most = (len(records) - done) * max_new_tokens
        print_note(
            f"{len(records) - done:,} prompts to answer with up to {max_new_tokens} tokens each in {output}, {done:,} already there; "
            f"at most {most:,} new tokens, about {most * (5 if endpoint else 12) / 1e6:,.1f} MB"
        )
        if done == len(records):
            list_failures(output, [])
            return
        replier: Replier
        if endpoint:  # without torch, which takes seconds to import and has nothing to do there
            from pard2.data.endpoint import Endpoints

            key, name = _environment("--api-key-env", api_key_env), served_model or target
            servers = Endpoints(endpoint, name, settings, api_key=key, concurrency=concurrency, timeout=timeout, retries=retries)
            servers.check()
            replier = servers.reply
        else:
            with working(f"loading {target}"):
                from pard2.checkpoints.meta import meta_target
                from pard2.checkpoints.twin import check_decodable
                from pard2.data.local import local_replier
                from pard2.engine.engine import Engine

                check_decodable(meta_target(target).model, target)  # said before its weights are read
                proposer = None if draft is None else choose_draft(target, draft, None)
                engine = Engine.from_pretrained(target, proposer, dtype=dtype, device=device, max_batch=batch_size)
            check_template_args(engine.target, engine.draft, arguments, records)
            room = min(engine.target.context_length, engine.cache_tokens)
            replier = local_replier(engine.target, _answerer(engine, params), settings, room)
        with record_progress("prompts", len(records), done) as advance:
            failures = run(records, writer, replier, target, settings, progress=advance)
        answered = len(writer.done)
    for failure in failures[:5]:
        print_note(f"not answered: {failure['id']}: {failure['error']}")
    if not answered:
        raise Pard2Error(f"none of the {len(records):,} prompts of {source} could be answered: {failures[0]['error']}")
    listed = f", listed in {failures_path(output)}; the same command tries them again" if failures else ""
    print_note(f"{output}: {answered:,} of {len(records):,} answered, {len(failures):,} could not be{listed}")


_HERE_ALONE = ("draft", "batch_size", "dtype", "device")
_ENDPOINT_ALONE = ("served_model", "concurrency", "api_key_env", "timeout", "retries", "extra_body")


def _refuse_given(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Raises `Pard2Error` for the first of these options that the command line holds, its default value included."""
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
        return engine.generate(prompts, [dataclasses.replace(params, seed=seed) for seed in seeds])

    return answer


@contextmanager
def _resumable(output: Path, force: bool, ours: Callable[[str], bool], foreign: str) -> Iterator["RecordWriter"]:
    """The open output, checked before the long work begins; Ctrl-C leaves it whole and says so."""
    from pard2.data.records import RecordWriter

    with RecordWriter(output, force) as writer:
        if not all(map(ours, writer.done)):
            raise Pard2Error(f"{output} exists and holds {foreign}; name another file with -o, or give --force to replace it")
        try:
            yield writer
        except KeyboardInterrupt:
            if writer.done or not output.exists():
                print_note(f"{len(writer.done):,} records are in {output}; {writer.way_on}")
            raise
