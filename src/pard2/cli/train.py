"""`pard2 train`: runs or resumes what a YAML file says."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pard2.cli.console import console, print_note, working
from pard2.cli.flags import speak_fields
from pard2.cli.options import JsonOption
from pard2.errors import Pard2Error

if TYPE_CHECKING:
    from pard2.config import TrainConfig


def train(
    config: Annotated[str | None, typer.Argument(metavar="CONFIG.yaml", help="The run; docs and recipes explain its fields.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[SECTION.FIELD=VALUE]...", help="Fields to change, such as optimizer.lr=1e-4.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="DIR", help="Go on with the run in this directory, in place of CONFIG.yaml.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the run, print it with every default filled in, say what it will take, and stop.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a draft; the same command, or --resume and the run's directory, goes on after a stop."""
    loaded = _load(config, overrides or [], resume, planned=dry_run)
    speak_fields()
    if dry_run:
        _dry_run(loaded, as_json)
        return
    if as_json:
        raise Pard2Error("--json belongs to --dry-run; a run's figures are in loop.output/metrics.jsonl")
    from pard2.train import loop

    speaks = os.environ.get("RANK", "0") == "0"  # of several processes, the main one
    try:
        directory = loop.train(loaded, console)
    except loop.Stopped as stopped:
        if speaks:
            print_note(str(stopped))
        raise typer.Exit(128 + stopped.signal) from None  # as shells report it
    except KeyboardInterrupt:
        print_note("what the last checkpoint holds is kept; the same command resumes there")
        raise
    if speaks:
        typer.echo(directory)


def _load(config: str | None, overrides: list[str], resume: Path | None, planned: bool) -> "TrainConfig":
    """The run of a YAML file, or of a directory; then even the first argument is an override.

    planned: it is a dry run, which does with the shapes of models that are not there yet.
    """
    if resume is None:
        from pard2.config_file import load_config
        from pard2.train.first_draft import check_draft_made

        if config is None:
            raise Pard2Error("there is no run; name a YAML file such as recipes/smollm2-start.yaml, or a run's directory with --resume")
        run = load_config(config, overrides)
        if not planned or run.draft.shape is None:
            check_draft_made(run, Path(config))
        return run
    from pard2.train.run_checkpoint import resumed_config

    if config is not None and "=" not in config:
        raise Pard2Error(f"--resume {resume} knows its run; leave {config} out")
    return resumed_config(resume, [config, *overrides] if config is not None else overrides)


def _dry_run(config: "TrainConfig", as_json: bool) -> None:
    """The resolved run on standard output, its plan on standard error; with --json both in one object on
    standard output. Its paths are absolute: it is the same run wherever it is written to.
    """
    import json

    import yaml

    from pard2.config_file import absolute

    resolved = absolute(config).model_dump(mode="json")
    with working("reading the conversations"):
        from pard2.train.dry_run import dry_run
        from pard2.train.plan import render

        plan = dry_run(config)
    if as_json:
        typer.echo(json.dumps({"config": resolved, "plan": plan.as_dict()}))
        return
    typer.echo(yaml.safe_dump(resolved, sort_keys=False).rstrip())
    console.print(render(plan), soft_wrap=False)
