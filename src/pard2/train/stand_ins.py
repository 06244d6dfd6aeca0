"""What a dry run plans with where models or conversations are not there yet, as its file tells."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pard2.checkpoints.loading import load_config
from pard2.config import TrainConfig
from pard2.data.corpus import Examples, offsets_of
from pard2.data.sources import open_source
from pard2.errors import Pard2Error
from pard2.models.any_draft import AnyDraft
from pard2.models.target import Target
from pard2.train.initial import meta_pair, run_examples

_LENGTHS = 16  # assumed ones, evenly spaced


def planned_pair(config: TrainConfig, missing: list[str]) -> tuple[Target, AnyDraft]:
    """As `meta_pair`; a model that cannot be read is made of its `shape`, if the run has one.

    Such a target has no tokenizer.

    missing: gets a line for each such model.
    """
    with TemporaryDirectory() as directory:
        sections = {}
        for section, field in (("target", "name"), ("draft", "path")):
            part = getattr(config, section)
            if part.shape is None or getattr(part, field) is None:
                continue
            try:
                load_config(getattr(part, field))
            except Pard2Error as error:
                missing.append(f"{error}; planned with {section}.shape")
                beside = Path(directory, section)
                beside.mkdir()
                (beside / "config.json").write_text(json.dumps(part.shape))
                sections[section] = part.model_copy(update={field: str(beside)})
        return meta_pair(config.model_copy(update=sections), stand_in="target" in sections)


def planned_examples(config: TrainConfig, target: Target, draft: AnyDraft, missing: list[str]) -> Examples:
    """As `run_examples`; what cannot be read is assumed, if the run tells how many tokens to expect.

    missing: gets a line then.
    """
    data, why = config.data, None
    if data.expected_tokens is not None:
        why = next(filter(None, map(absent, data.train)), None)
    if target.tokenizer is None:
        why = why or "without the target's tokenizer the conversations cannot be read"
    if why is None:
        return run_examples(config, target, draft)
    if data.expected_tokens is None:
        raise Pard2Error(f"{why}; say how many tokens to plan with: data.expected_tokens=N")
    # A quarter of the longest up to all of it, every other token to predict.
    lengths = np.linspace(max(1, data.max_length // 4), data.max_length, _LENGTHS).astype(np.int64)
    lengths = np.resize(lengths, max(1, round(data.expected_tokens / lengths.mean())))
    missing.append(
        f"{why}; assumed are data.expected_tokens={data.expected_tokens:,} in conversations of {lengths.min():,} to {lengths.max():,} tokens, "
        "every other one to predict"
    )
    total = int(lengths.sum())
    return Examples(
        tokens=np.broadcast_to(np.int32(0), total),
        predicted=np.arange(total) % 2 == 1,
        offsets=offsets_of(lengths),
        ids=[str(i) for i in range(len(lengths))],
    )


def absent(source: str) -> str | None:
    """Why there is nothing to read under this name; None where there is something, be it damaged."""
    try:
        if not Path(source).exists():
            open_source(source)
    except Pard2Error as error:
        return str(error)
    return None
