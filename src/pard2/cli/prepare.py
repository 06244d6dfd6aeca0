"""`pard2 data prepare` and `preview`: what a draft will learn, tokenised once and for
all, or shown to a person."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from pard2.cli.console import print_note, print_words, record_progress, working
from pard2.cli.options import ForceOption, TargetOption
from pard2.cli.template_args import TemplateArgOption, parse_template_args
from pard2.errors import Pard2Error
from pard2.files import PREPARED, new_directory
from pard2.reading import printable
from pard2.terminal import make_console

if TYPE_CHECKING:
    from pard2.data.corpus import Example, Examples
    from pard2.data.examples import OnLong, Progress
    from pard2.models.target import Target

SourcesArgument = Annotated[
    list[str], typer.Argument(metavar="SOURCE...", help="Files of JSON, CSV or Parquet, or data sets of the hub (org/name, org/name/config:split).")
]


def prepare(
    context: typer.Context,
    sources: SourcesArgument,
    target: TargetOption,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Directory for data.train of a run.")],
    max_length: Annotated[int, typer.Option("--max-length", min=2, help="Tokens of a conversation.")] = 512,
    on_long: Annotated[str, typer.Option("--on-long", metavar="raise|cut|skip", help="What becomes of a longer one.")] = "raise",
    template_arguments: TemplateArgOption = None,
    force: ForceOption = False,
) -> None:
    """Tokenise conversations once, for many runs: tokens, loss mask, and a manifest of what made them."""
    with working("importing torch"):
        from pard2.data.examples import load_examples
        from pard2.data.prepared import BYTES_PER_TOKEN, Preparation, is_prepared, save_prepared
        from pard2.data.sources import open_source

    choice, arguments = _parse_on_long(on_long), parse_template_args(template_arguments)
    for name in sources:
        if is_prepared(name):
            raise Pard2Error(f"{name} is prepared already; name it in data.train")
    context.with_resource(new_directory(output, force, PREPARED, (*sources, target)))
    model = _with_tokenizer(target)
    with working("reading sources"):
        opened = [open_source(name) for name in sources]
    rows = sum(source.count for source in opened)
    print_note(f"{rows:,} conversations to tokenise for {target}; up to about {rows * max_length * BYTES_PER_TOKEN / 1e6:,.1f} MB in {output}")
    with _tokenising() as progress:
        examples = load_examples(
            sources, model.tokenizer, model.eos_token_ids, max_length, choice, progress, vocab_size=model.vocab_size, arguments=arguments
        )
    preparation = Preparation(target, max_length, choice, arguments)
    save_prepared(output, examples, opened, model.tokenizer, model.eos_token_ids, preparation)
    size = sum(file.stat().st_size for file in output.iterdir()) / 1e6
    print_note(f"{output}: {_counts(examples)}, {examples.skipped:,} skipped, {examples.cut:,} cut; {size:,.1f} MB; next: data.train=[{output}]")


def preview(
    sources: SourcesArgument,
    target: TargetOption,
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=10**9, help="Conversations to show.")] = 3,
    template_arguments: TemplateArgOption = None,
    max_length: Annotated[int, typer.Option("--max-length", min=2, help="Tokens of a conversation; what is longer is shown up to there.")] = 512,
) -> None:
    """Show which tokens a draft learns to predict: green on a terminal, between ⟦ ⟧ elsewhere."""
    with working("importing torch"):
        from rich.text import Text

        from pard2.cli.loss_mask import render
        from pard2.data.arguments import check_arguments
        from pard2.data.examples import load_examples

    arguments = parse_template_args(template_arguments) or None
    model = _with_tokenizer(target)
    check_arguments(model.tokenizer, arguments)
    out = make_console()
    for example in _first_examples(sources, model, count, arguments):
        out.rule(Text(printable(f"{example.id}: {sum(example.predicted)} of {len(example.token_ids)} tokens are predicted")))
        print_words(out, render(model.tokenizer, example, max_length, marked=not out.is_terminal))
    with _tokenising() as progress:
        examples = load_examples(
            sources, model.tokenizer, model.eos_token_ids, sys.maxsize, progress=progress, vocab_size=model.vocab_size, arguments=arguments
        )
    long = int((examples.lengths > max_length).sum())
    out.rule()
    print_words(out, Text(f"{_counts(examples)}; the longest has {examples.lengths.max():,}; {long:,} are longer than --max-length {max_length:,}"))


def _parse_on_long(text: str) -> "OnLong":
    from pard2.data.examples import OnLong

    for choice in get_args(OnLong):
        if choice == text:
            return choice
    raise Pard2Error(f"--on-long {text!r} is not one of {', '.join(get_args(OnLong))}")


def _with_tokenizer(name: str) -> "Target":
    from pard2.checkpoints.meta import meta_target

    model = meta_target(name)
    if model.tokenizer is None:
        raise Pard2Error(f"{name!r} has no tokenizer, which making tokens needs")
    return model


def _first_examples(sources: list[str], model: "Target", count: int, arguments: dict[str, Any] | None) -> Iterator["Example"]:
    """All examples of the first `count` conversations; of prepared data, its first `count` examples."""
    from pard2.data.arguments import with_arguments
    from pard2.data.chat import tokenize_records
    from pard2.data.conversations import to_record
    from pard2.data.prepared import is_prepared, load_prepared
    from pard2.data.sources import open_source
    from pard2.data.tally import Tally

    for name in sources:
        if is_prepared(name):
            shown = load_prepared(name, model.tokenizer, model.eos_token_ids, sys.maxsize)[:count]
            yield from shown
            count -= len(shown)
        else:
            for where, row in islice(open_source(name).rows(), count):
                record = with_arguments(to_record(row, where), arguments)
                yield from tokenize_records(model.tokenizer, [record], model.eos_token_ids, Tally())[0]
                count -= 1


@contextmanager
def _tokenising() -> Iterator["Progress"]:
    """A bar that begins once it is known how much there is to do; meanwhile texts are spread over all cores,
    which is safe as nothing forks."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    with ExitStack() as stack:
        advance, seen = None, (0, 0)

        def progress(done: int, total: int, tokens: int) -> None:
            nonlocal advance, seen
            if advance is None:
                advance = stack.enter_context(record_progress("conversations", total, 0))
            advance(done - seen[0], tokens - seen[1])
            seen = (done, tokens)

        yield progress


def _counts(examples: "Examples") -> str:
    from pard2.data.tally import told

    tokens, predicted = len(examples.tokens), int(examples.predicted.sum())
    return f"{len(examples):,} examples of {tokens:,} tokens, {predicted / tokens:.1%} of them predicted{told(examples.notes)}"
