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
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The run; docs and recipes explain its fields.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[SECTION.FIELD=VALUE]...", help="Fields to change, such as optimizer.lr=1e-4.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the run, print it with every default filled in, say what it will take, and stop.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a draft; the same command resumes a run that was stopped."""
    from pard2.config import load_config

    loaded = load_config(config, overrides or [])
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


def _dry_run(config: "TrainConfig", as_json: bool) -> None:
    """The resolved run on standard output, its plan on standard error; with --json both in one object on
    standard output.
    """
    import json

    import yaml

    with working("reading the conversations"):
        from pard2.train.dry_run import dry_run
        from pard2.train.plan import render

        plan = dry_run(config)
    if as_json:
        typer.echo(json.dumps({"config": config.model_dump(mode="json"), "plan": plan.as_dict()}))
        return
    typer.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip())
    console.print(render(plan))
