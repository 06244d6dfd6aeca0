"""The console for tables on standard output."""

import os
from typing import Any

from rich.console import Console

from pard2.cli.console import on_terminal
from pard2.terminal import make_console

_WIDTH = 80  # of what goes into a file or a pipe


def output_console(**options: Any) -> Console:
    """As wide as the terminal; elsewhere, where a terminal's width means nothing, 80 columns or `COLUMNS`."""
    return make_console(width=None if on_terminal() or "COLUMNS" in os.environ else _WIDTH, **options)
