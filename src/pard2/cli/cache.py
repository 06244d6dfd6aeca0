"""`pard2 data cache`: the target's hidden states for a run, computed once and kept on disk."""

from pathlib import Path
from typing import Annotated

import typer

from pard2.cli.console import print_note, record_progress, working
from pard2.cli.flags import speak_fields
from pard2.errors import Pard2Error
from pard2.files import claim


def cache(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The run that will use them; features.cache says where they go.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[SECTION.FIELD=VALUE]...", help="Fields to change, such as features.cache=DIR.")
    ] = None,
) -> None:
    """Compute the target's hidden states for a run's conversations before it starts; the same command goes on
    where it was stopped.
    """
    from pard2.config_file import load_config
    from pard2.train.first_draft import check_draft_made

    run = load_config(config, overrides or [])
    check_draft_made(run, config)
    speak_fields()
    if run.features.cache is None:
        raise Pard2Error(f"{config} says not where the hidden states shall go; give features.cache=DIR")
    with working("reading the conversations"):
        from pard2.checkpoints.loading import load_target
        from pard2.data.filling import fill, probe
        from pard2.data.state_cache import StateCache
        from pard2.train.initial import cache_layers, meta_pair, run_examples
        from pard2.units import duration, size

        name = run.target.name
        meta, draft = meta_pair(run)
        layers = cache_layers(run, draft)
        examples = run_examples(run, meta, draft)
    with working(f"loading {name}"):
        target = load_target(name, run.target.dtype, run.loop.device, weight_format="plain")
        states = StateCache.open(run.features.cache, target, layers, more=run.features.layers or ())
    lacking = states.missing(examples)
    if not lacking:
        print_note(f"{states.directory}: all {len(examples):,} conversations are there")
        return
    lengths = examples.lengths[lacking]
    needed = states.bytes_of(lengths)
    print_note(
        f"{len(lacking):,} conversations of {lengths.sum():,} tokens to run through {name}, {len(examples) - len(lacking):,} already there; "
        f"{size(needed)} more in {states.directory}, hidden states {list(states.layers)} in {run.target.dtype}"
    )
    states.check_room(needed)
    try:
        with claim(states.directory), states, record_progress("conversations", len(examples), len(examples) - len(lacking)) as advance:
            done, seconds = probe(states, examples, lacking)
            if done < len(lacking):
                print_note(
                    f"about {duration(seconds * lengths[done:].sum())} for the other {len(lacking) - done:,}, by the pace of the first {done:,}"
                )
            advance(done, int(lengths[:done].sum()))
            fill(states, examples, lacking[done:], advance)
    except KeyboardInterrupt:
        there = len(examples) - len(states.missing(examples))
        print_note(f"{there:,} of {len(examples):,} conversations are in {states.directory}; the same command goes on from there")
        raise
    print_note(f"{states.directory}: all {len(examples):,} conversations are there; next: pard2 train {config}")
