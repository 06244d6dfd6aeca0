"""Help that a reader can use: words for values, examples that work, hints for names of others, completion."""

import re
import shlex

import pytest
import typer

from pard2.cli.commands import COMMANDS, app
from pard2.cli.examples import EXAMPLES


def commands():
    """Each command by its path, as in "draft init"."""
    top = typer.main.get_command(app)
    for name in COMMANDS:
        command = top.get_command(None, name)
        below = getattr(command, "commands", None)
        yield from ((f"{name} {sub}", one) for sub, one in below.items()) if below else ((name, command),)


PATHS = [path for path, _ in commands()]


@pytest.mark.parametrize("path", [*PATHS, "draft", "data", ""])
def test_help_names_a_type_of_python(pard2, path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = pard2(*path.split(), "--help").out
    assert not re.findall(r"<\w+(?:\[\w+\])?>|\b(?:bool|int range|list\[)", shown), shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("path", PATHS)
def test_help_ends_with_two_examples(pard2, path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line.strip() for line in pard2(*path.split(), "--help").out.splitlines()]
    assert len(EXAMPLES[path]) == 2 and all(example in lines for example in EXAMPLES[path]), lines


@pytest.mark.parametrize(("path", "example"), [(path, example) for path, both in EXAMPLES.items() for example in both])
def test_an_example_has_an_option_that_there_is_not(path, example):
    command = dict(commands())[path]
    program, *words = shlex.split(example)
    assert program == "pard2" and words[: len(path.split())] == path.split()
    command.make_context(path, words[len(path.split()) :])  # it parses, and checks what is required


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("generate", "--model", "x"), "no such option: --model; here it is -t/--target"),
        (("generate", "--max-tokens", 5), "no such option: --max-tokens; here it is --max-new-tokens"),
        (("generate", "--max_tokens=5"), "no such option: --max_tokens; here it is --max-new-tokens"),
        (("generate", "-n", 2), "no such option: -n; here it is --n"),
        (("bench", "--draft-model", "x"), "no such option: --draft-model; here it is -d/--draft"),
        (("chat", "--temp", 1), "no such option: --temp; here it is --temperature"),
        (("verify", "--num-speculative-tokens", 4), "no such option: --num-speculative-tokens; here it is --draft-tokens"),
        (("draft", "init", "--model", "x"), "no such option: --model; here it is -t/--target"),
        (("generate", "--temperture", 1), "no such option: --temperture; did you mean --temperature, --template-arg?"),
        (("env", "--model", "x"), "no such option: --model; pard2 env --help lists them"),
        (
            ("generate", "-p", "x", "-t", "x", "-m", "smollm2"),
            "-m 'smollm2' is not one of ar, ngram, vsd, pard, pard2-ti, pard2-td, eagle3; a model is named with -t",
        ),
        (("-V",), "no such option: -V; here it is --version"),
        (("data", "-x"), "no such option: -x; pard2 data --help lists them"),
    ],
)
def test_a_name_of_others_is_refused_without_a_hint(pard2, words, hint):
    assert pard2(*words).error == hint


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pard2 ", {name for name in COMMANDS if " " not in name}),
        ("pard2 bench compare --any", {"--any-machine"}),
        ("pard2 ge", {"generate"}),
        ("pard2 draft i", {"init", "info"}),
        ("pard2 generate --max", {"--max-new-tokens"}),
        ("pard2 bench --dra", {"--draft", "--draft-tokens"}),
        ("pard2 data prepare --on", {"--on-long"}),
    ],
)
def test_completion(pard2, monkeypatch, typed, offered):
    monkeypatch.setenv("_PARD2_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" ")) - 1))
    result = pard2()
    assert result.code == 0 and set(result.out.split()) == offered


def test_completion_can_be_installed(pard2, monkeypatch):
    assert "--install-completion" in pard2("--help").out
    monkeypatch.setenv("_PARD2_COMPLETE", "source_bash")
    assert "_PARD2_COMPLETE=complete_bash" in pard2().out
