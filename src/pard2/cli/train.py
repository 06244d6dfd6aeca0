"""`pard2 train`: runs or resumes what a YAML file says."""

from pathlib import Path
from typing import Annotated

import typer

from pard2.cli.console import console, print_note


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The run; docs and recipes explain its fields.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[SECTION.FIELD=VALUE]...", help="Fields to change, such as optimizer.lr=1e-4.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file, print the run with every default filled in, and stop.")] = False,
) -> None:
    """Train a draft; the same command resumes a run that was stopped."""
    from pard2.config import load_config

    loaded = load_config(config, overrides or [])
    if dry_run:
        import yaml

        typer.echo(yaml.safe_dump(loaded.model_dump(), sort_keys=False).rstrip())
        return
    from pard2.train import loop

    try:
        directory = loop.train(loaded, console)
    except KeyboardInterrupt:
        print_note("what the last checkpoint holds is kept; the same command resumes there")
        raise
    typer.echo(directory)
