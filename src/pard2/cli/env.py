"""`pard2 env`: what a result from here depends on, and which form of the weights is fastest."""

import json
from typing import Any

import typer

from pard2.cli.console import working
from pard2.cli.options import JsonOption
from pard2.cli.output import output_console


def env(as_json: JsonOption = False) -> None:
    """Show versions and hardware, and how long each form of the weights takes here."""
    with working("importing torch"):
        import torch

        from pard2.cache_directory import cache_directory
        from pard2.checkpoints.weight_choice import measured_times
        from pard2.environment import meta
        from pard2.kernels.weight_format import weight_formats
        from pard2.runtime.fastest_format import ROWS, fastest
    about = {key: value for key, value in meta().items() if key in ("versions", "hardware")} | {"cache": str(cache_directory())}
    formats = [name for name in weight_formats(torch.device("cpu"), torch.bfloat16) if name != "plain"]
    with working("timing the forms of the weights"):
        times = measured_times(formats)
    kept = times.copy()
    kept.pop("int8", None)  # a target's weights stay as they are unless int8 is asked for
    chosen: dict[str, dict[str, str]] = {}
    if kept:
        chosen = {str(many): {"target": fastest(kept, many), "draft": fastest(times, many)} for many in (1, 16)}
    if as_json:
        typer.echo(json.dumps(about | {"rows": ROWS, "milliseconds": times, "chosen": chosen}))
        return
    _print(about, times, chosen, ROWS)


def _print(about: dict[str, Any], times: dict[Any, list[float]], chosen: dict[str, dict[str, str]], rows: tuple[int, ...]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    console, hardware = output_console(), about["hardware"]
    console.print("versions    " + ", ".join(f"{name} {version}" for name, version in about["versions"].items()))
    console.print(f"processor   {hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads; {', '.join(hardware['features'])}")
    console.print(f"GPU         {hardware['gpu'] or 'none'}")
    console.print(f"cache       {about['cache']}", soft_wrap=True)
    if not times:
        return console.print("weights     as they are: this CPU has no faster form of them")
    table = Table("weights", *(f"{many} rows" if many > 1 else "1 row" for many in rows), box=SIMPLE_HEAD, pad_edge=False)
    for name, each in times.items():
        best = [min(column) for column in zip(*times.values(), strict=True)]
        table.add_row(name, *(f"[green]{one:.2f} ms[/]" if one == least else f"{one:.2f} ms" for one, least in zip(each, best, strict=True)))
    console.print("\nA pass of a small model in bfloat16, 4 layers 512 wide:")
    console.print(table)
    for many, names in chosen.items():
        console.print(f"{many + ' sequences at once' if many != '1' else 'one sequence'}: target {names['target']}, draft {names['draft']}")
