"""From the sources that a run names to its examples: read, tokenised, and no longer than the run allows."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Literal

import numpy as np

from pard2.data.arguments import check_arguments, with_arguments
from pard2.data.chat import check_ids, tokenize_records
from pard2.data.conversations import to_record
from pard2.data.corpus import Example, Examples, ExamplesBuilder
from pard2.data.prepared import is_prepared, load_prepared
from pard2.data.sources import Source, open_source
from pard2.data.tally import told
from pard2.errors import Pard2Error
from pard2.hf import Tokenizer

_BATCH = 256  # records tokenised at once

OnLong = Literal["raise", "cut", "skip"]

# Records done, records in all, tokens so far.
Progress = Callable[[int, int, int], None]


def load_examples(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    eos_token_ids: frozenset[int],
    max_length: int,
    on_long: OnLong = "raise",
    progress: Progress = lambda done, total, tokens: None,
    vocab_size: int | None = None,
    arguments: dict[str, Any] | None = None,
) -> Examples:
    """All examples of these sources, in order.

    sources: files, data sets (`open_source`), and directories that `pard2 data prepare` wrote.
    on_long: what becomes of an example of more than `max_length` tokens. With `cut`, one that has no answer
        up to there is skipped.
    progress: told after each batch.
    vocab_size: of the target, which must know every token; None does not ask.
    arguments: what the chat template gets where a record does not say otherwise; None for nothing, and for
        whatever was prepared.

    Raises `Pard2Error` naming the record that cannot be learned, for a source without records or with more
    that are left out than learned, and if no example is left.
    """
    check_arguments(tokenizer, arguments)
    builder = ExamplesBuilder()
    opened = [load_prepared(name, tokenizer, eos_token_ids, max_length, arguments) if is_prepared(name) else open_source(name) for name in sources]
    total = sum(len(one) if isinstance(one, Examples) else one.count for one in opened)
    done = 0
    for name, source in zip(sources, opened, strict=True):
        if isinstance(source, Examples):
            builder.extend(source, name)
            done += len(source)
            progress(done, total, builder.num_tokens)
            continue
        for batch in _batches(source):
            records = [with_arguments(to_record(row, where), arguments) for where, row in batch]
            try:
                tokenized = tokenize_records(tokenizer, records, eos_token_ids, builder.tally)
            except Pard2Error as error:
                raise Pard2Error(f"{source.name}: {error}") from None
            for example in chain.from_iterable(tokenized):
                _add(builder, example, source, max_length, on_long)
            done += len(batch)
            progress(done, total, builder.num_tokens)
        builder.tally.check(source.name, source.count)
    if not len(builder) and not builder.skipped:
        raise Pard2Error(f"no answer is left to learn{told(builder.tally.counts)}")
    if not len(builder):
        raise Pard2Error(f"none of the {builder.skipped:,} conversations has an answer within `max_length` {max_length} tokens")
    examples = builder.build()
    if vocab_size is not None:
        _check_vocabulary(examples, vocab_size)
    return examples


def _check_vocabulary(examples: Examples, vocab_size: int) -> None:
    """Raises `Pard2Error` for the first record with a token that the target does not know."""
    if examples.tokens.min() >= 0 and examples.tokens.max() < vocab_size:
        return
    first = np.flatnonzero((examples.tokens < 0) | (examples.tokens >= vocab_size))[0]
    example = examples[int(np.searchsorted(examples.offsets, first, "right")) - 1]
    check_ids(example.token_ids.tolist(), vocab_size, f"record {example.id}", "the target")


def _batches(source: Source) -> Iterator[list[tuple[str, Any]]]:
    if not source.count:
        raise Pard2Error(f"{source.name} holds no records")
    rows = source.rows()
    while batch := list(islice(rows, _BATCH)):
        yield batch


def _add(builder: ExamplesBuilder, example: Example, source: Source, max_length: int, on_long: OnLong) -> None:
    length = len(example.token_ids)
    if length <= max_length:
        builder.add(example, source.name)
    elif on_long == "raise":
        raise Pard2Error(
            f"{source.name}: record {example.id} has {length} tokens, more than `max_length` {max_length}; "
            "raise that, or set `on_long` to cut or skip"
        )
    elif on_long == "cut" and example.predicted[:max_length].any():
        # Copies: a view would hold the whole conversation until the arrays are joined.
        builder.add(Example(example.id, example.token_ids[:max_length].copy(), example.predicted[:max_length].copy()), source.name)
        builder.cut += 1
    else:
        builder.skipped += 1
