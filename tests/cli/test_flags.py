"""Records as options, and the names of parameters as flags."""

import json
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from pard2.cli import flags
from pard2.cli.flags import Flags, speak_fields, speak_flags_of, to_flags, with_records
from pard2.engine.engine import Engine
from pard2.engine.options import EngineOptions
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error


@pytest.fixture
def run():
    """Calls a command of two records; returns what it is called with."""

    def run(*words: str) -> tuple[SamplingParams, EngineOptions]:
        found = []

        @with_records
        def command(
            params: Annotated[SamplingParams, Flags("max_tokens", "seed", "stop", max_tokens=7)],
            options: Annotated[EngineOptions, Flags("draft_tokens", "tree", "tree_top_k", "cuda_graphs", tree=3)],
            end: Annotated[str, typer.Option("--end")] = "",
        ) -> None:
            found.append((params, options, end))

        app = typer.Typer()
        app.command()(command)
        result = CliRunner().invoke(app, [*words, "--end", "x"])
        assert result.exit_code == 0 and found[0][2] == "x", result.output
        return found[0][:2]

    return run


def test_a_command_is_called_with_its_records(run):
    assert run() == (SamplingParams(max_tokens=7), EngineOptions(tree=3))
    words = ("--max-new-tokens", "9", "--seed", "2", "--stop", "a", "--stop", "b", "--draft-tokens", "full", "--tree", "auto", "--no-cuda-graphs")
    assert run(*words) == (SamplingParams(max_tokens=9, seed=2, stop=("a", "b")), EngineOptions(draft_tokens="full", tree="auto", cuda_graphs=False))
    assert run("--draft-tokens", "4", "--tree", "16", "--cuda-graphs")[1] == EngineOptions(draft_tokens=4, tree=16, cuda_graphs=True)
    assert run("--tree", "16", "--tree-top-k", "4")[1] == EngineOptions(tree=16, tree_top_k=4)


def test_a_field_that_a_command_does_not_show_is_no_option():
    @with_records
    def command(params: Annotated[SamplingParams, Flags("seed")]) -> None: ...

    app = typer.Typer()
    app.command()(command)
    assert CliRunner().invoke(app, ["--top-k", "3"]).exit_code == 2


class Option:
    def __init__(self, name: str, *opts: str) -> None:
        self.name, self.opts = name, opts


def test_a_name_becomes_the_flag_of_the_command_that_runs_and_no_other(monkeypatch):
    monkeypatch.setattr(flags, "_flags", {})
    message = "give a smaller `max_tokens`, another `output` or `messages`; `cache_tokens` 3"
    assert to_flags(message) == message
    speak_flags_of([Option("max_new_tokens", "--max-new-tokens"), Option("output", "-o", "--output"), Option("messages", "messages")])
    assert to_flags(message) == "give a smaller --max-new-tokens, another -o or `messages`; `cache_tokens` 3"
    speak_flags_of([Option("config", "config")])
    speak_fields()
    assert to_flags("`max_length` 3; `output` is not empty") == "data.max_length 3; `output` is not empty"


@pytest.mark.parametrize("command", ["generate", "chat", "verify"])
@pytest.mark.parametrize(
    ("words", "tree", "graphs"), [((), 0, None), (("--tree", "16", "--cuda-graphs"), 16, True), (("--tree", "auto"), "auto", None)]
)
def test_trees_and_graphs_reach_the_engine(pard2, target_directory, monkeypatch, command, words, tree, graphs):
    def build(*_, **options):
        raise Pard2Error(json.dumps(options))

    monkeypatch.setattr(Engine, "from_pretrained", build)
    prompt = ("-p", "x") if command == "generate" else ()
    asked = json.loads(pard2(command, "-t", target_directory, *prompt, *words).error)
    assert (asked["tree"], asked["cuda_graphs"]) == (tree, graphs)


@pytest.mark.parametrize("command", ["generate", "chat", "verify", "bench"])
def test_a_tree_that_means_nothing_names_the_flag(pard2, target_directory, draft_directory, lm_directory, tmp_path, command):
    (tmp_path / "suite.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    more = {"generate": ("-p", "x"), "bench": ("-s", tmp_path / "suite.jsonl")}.get(command, ())

    def ask(draft, *words):
        return pard2(command, "-t", target_directory, "-d", draft, *more, *words).error

    assert ask(draft_directory, "--tree", -1).startswith("--tree -1: ")
    assert ask(draft_directory, "--tree", "some").startswith("--tree 'some': ")
    assert ask(draft_directory, "--tree", 8, "-m", "vsd").startswith("--tree 8: ")
    assert "proposes no trees" in ask(lm_directory, "--tree", 8)
    assert ask(draft_directory, "--tree-top-k", 4).endswith("add --tree, or leave --tree-top-k out")
    assert ask(draft_directory, "--tree", 8, "--tree-top-k", 65) == "--tree-top-k 65: give a number of tokens from 1 to 64"
    way = "name it with -m, or leave --tree-top-k away" if command == "bench" else "use it, or leave --tree-top-k out"
    assert ask(draft_directory, "--tree", 8, "--tree-top-k", 4).endswith(way)
    if command in ("generate", "verify"):
        drawn = ask(draft_directory, "--tree", 8, "--draft-sampling", "sampled", "--verification", "block")
        assert drawn.endswith("use --draft-sampling greedy and --verification token, or --tree 0")


def test_graphs_without_cuda(pard2, target_directory):
    error = pard2("generate", "-t", target_directory, "-p", "x", "--device", "cpu", "--cuda-graphs").error
    assert error.startswith("--cuda-graphs needs a CUDA device")
