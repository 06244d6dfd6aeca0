"""What is shown on a terminal: text from outside is seen and never obeyed, an error is one line,
and pipes get every byte."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

import pard2
from chat_tokenizer import byte_tokenizer
from pard2.cli import console
from pard2.cli.colours import ColouredText
from pard2.engine.statistics import Step
from pard2.engine.text import TextStream
from pard2.reading import printable
from pard2.terminal import make_console

EVIL = "\x1b]0;PWNED\x07\x1b[2J [/x] :100: a\nerror: b\r\x9b2J\u2028\udcff"
SHOWN = "\\x1b]0;PWNED\\x07\\x1b[2J [/x] :100: a\\nerror: b\\r\\x9b2J\\u2028\\udcff"


def test_what_a_terminal_would_obey_is_escaped():
    assert printable(EVIL) == SHOWN
    assert printable("a\tb\nc\x1b", keep="\n\t") == "a\tb\nc\\x1b"
    assert printable("é 😀 \\x1b") == "é 😀 \\x1b"


@pytest.mark.parametrize(("show", "before"), [(console.print_error, "error: "), (console.print_note, "")])
def test_a_message_is_one_line_as_it_was_meant(capfd, show, before):
    """No markup, and no pictures: `f.jsonl:100: ..` became one."""
    show(EVIL)
    assert capfd.readouterr().err == f"{before}{SHOWN}\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_an_answer_is_escaped_on_a_terminal_alone(monkeypatch, terminal):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    assert console.answer_text("a\x1b[2J\n\tb\x9b") == ("a\\x1b[2J\n\tb\\x9b" if terminal else "a\x1b[2J\n\tb\x9b")


def test_standard_output_may_be_closed(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    assert console.answer_text("a\x1b") == "a\x1b"
    with console.record_progress("x", 1, 0) as advance:
        advance(1, 1)


def test_coloured_text_is_escaped():
    tokenizer = byte_tokenizer()
    ids = tokenizer("a\x1b[2J\n", add_special_tokens=False)["input_ids"]
    assert ColouredText(tokenizer).add(Step(token_ids=tuple(ids), accepted=1, proposed=3, seconds=0.1)).plain == "a\\x1b[2J\n"


def test_preview_shows_ids_and_texts_and_obeys_none(pard2, target_directory, tmp_path):
    """An id in brackets was a traceback."""
    path = tmp_path / "f.jsonl"
    row = {"id": EVIL[:-1], "messages": [{"role": "user", "content": "a\x1b[2J\tb"}, {"role": "assistant", "content": "c\rd"}]}
    path.write_text(json.dumps(row) + "\n")
    result = pard2("data", "preview", path, "-t", target_directory)
    assert result.code == 0 and f"{SHOWN[:-6]}: 4 of 31 token" in result.out
    assert "a\\x1b[2J" in result.out and "⟦c\\rd<|end|>⟧" in result.out and "\x1b" not in result.out


def test_an_id_makes_no_second_error(pard2, target_directory, tmp_path):
    path = tmp_path / "f\x1b[2J.jsonl"
    path.write_text(json.dumps({"id": EVIL[:-1], "messages": [{"role": "user", "content": "a"}]}) + "\n")
    said = pard2("data", "preview", path, "-t", target_directory).error
    assert "[/x] :100: a\\nerror: b" in said and "f\\x1b[2J.jsonl" not in said and "\x1b" not in said
    path.write_text("oops\n")
    assert "f\\x1b[2J.jsonl:1 is not JSON" in pard2("data", "preview", path, "-t", target_directory).error


def test_what_was_not_answered_is_told_in_its_line(pard2, target_directory, tmp_path):
    path = tmp_path / "f.jsonl"
    rows = [{"id": name, "messages": [{"role": "user", "content": text}]} for name, text in (("b", "x"), (EVIL[:-1], "y" * 200))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = pard2("data", "regenerate", "-t", target_directory, "-i", path, "-o", tmp_path / "out.jsonl", "--max-new-tokens", 4)
    assert result.code == 0 and f"not answered: {SHOWN[:-6]}: prompt of" in result.err and "\x1b" not in result.err


@pytest.mark.parametrize("options", [(), ("--stream",), ("--n", 2), ("--json",)])
def test_generate_escapes_on_a_terminal_and_not_in_a_pipe(pard2, target_directory, monkeypatch, options):
    real, (code,) = TextStream.push, byte_tokenizer()("\x7f", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(TextStream, "push", lambda self, ids: real(self, [code] * len(ids)))
    command = ("generate", "-t", target_directory, "-p", "hi", "--max-new-tokens", 2, *options)
    assert "\x7f\x7f" in pard2(*command).out
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    shown = pard2(*command).out
    assert "\\x7f\\x7f" in shown and "\x7f" not in shown


def test_suites_and_drafts_have_names_from_outside(pard2, target_directory, draft_directory, tmp_path):
    directory = tmp_path / "["
    directory.mkdir()
    (directory / "x]\x1b[2J.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    result = pard2("bench", "-s", directory / "x]\x1b[2J.jsonl", "-t", target_directory, "-d", draft_directory, "--max-new-tokens", 2)
    assert result.code == 0 and "x]\\x1b[2J" in result.out and "\x1b" not in result.out + result.err


WORDS = "a message that is longer than a line of the terminal, with a name such as /data/conversations/answers.jsonl in it: [x] stays"


@pytest.mark.parametrize(("show", "before"), [(console.print_error, "error: "), (console.print_note, "")])
def test_a_terminal_breaks_a_word(monkeypatch, show, before):
    shown = io.StringIO()
    monkeypatch.setattr(console, "console", make_console(file=shown, force_terminal=True, width=80, soft_wrap=True))
    show(WORDS)
    plain = Text.from_ansi(shown.getvalue()).plain
    assert plain.split() == (before + WORDS).split() and max(map(len, plain.splitlines())) <= 80
    assert "\x1b[2m" in shown.getvalue() or before


def test_a_note_of_two_lines(capfd):
    """A line break within a message would be escaped."""
    console.print_note("a", "b")
    assert capfd.readouterr().err == "a\nb\n"


def test_a_colour_that_a_light_or_a_dark_ground_hides():
    """Yellow and cyan on white; a dark grey on black."""
    shown = io.StringIO()
    screen = make_console(file=shown, force_terminal=True, width=80, color_system="256")
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), SpinnerColumn()
    with Progress(*columns, console=screen, auto_refresh=False) as progress:
        progress.add_task("x", total=2, completed=1)
        progress.refresh()
    codes = set(re.findall(r"\x1b\[([\d;]+)m", shown.getvalue()))
    assert codes <= {"32", "38;5;197", "38;5;244", "0"} and "38;5;244" in codes


def test_a_console_has_other_colours():
    """Consoles for text without colour, and those that measure, excepted."""
    source = Path(pard2.__file__).parent
    made = [
        f"{path.relative_to(source)}: {line.strip()}"
        for path in source.rglob("*.py")
        for line in path.read_text().splitlines()
        if " Console(" in line
    ]
    others = [line for line in made if "terminal.py" not in line and "color_system=None" not in line and "width=10_000" not in line]
    assert others == ["train/loop.py: console = console or Console(stderr=True)"]
