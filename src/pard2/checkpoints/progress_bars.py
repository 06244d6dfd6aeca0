"""No progress bars of transformers while a model is loaded: in a log each is hundreds of lines."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from transformers.utils import logging


@contextmanager
def without_bars() -> Iterator[None]:
    """Afterwards they are shown again, if they were before."""
    from transformers import modeling_gguf_pytorch_utils as gguf  # takes a second

    shown, bar = logging.is_progress_bar_enabled(), gguf.tqdm
    logging.disable_progress_bar()
    gguf.tqdm = partial(bar, disable=True)  # this one obeys no setting
    try:
        yield
    finally:
        gguf.tqdm = bar
        if shown:
            logging.enable_progress_bar()
