"""A target and its draft by their names, checked before the long load."""

from dataclasses import dataclass

import torch

from pard2.checkpoints.hub import accessing, with_revision
from pard2.checkpoints.loading import load_target, parse_device, parse_dtype
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.weight_choice import asked_format
from pard2.engine.methods import METHODS, choose_draft
from pard2.engine.options import EngineOptions
from pard2.errors import Pard2Error
from pard2.models.any_draft import AnyDraft
from pard2.models.target import Target


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Which models, and in which form; the fields are those of `Engine.from_pretrained`."""

    target: str
    draft: str | None = None
    dtype: str | torch.dtype | None = None
    device: str | torch.device | None = None
    weights: str = "auto"
    revision: str | None = None
    token: str | None = None
    local_files_only: bool = False

    def __post_init__(self) -> None:
        for parameter, name in (("target", self.target), ("draft", self.draft)):
            if not isinstance(name, str) and (name is not None or parameter == "target"):
                raise Pard2Error(f"`{parameter}` is the name of a model, a str, and not {type(name).__name__}; a loaded one goes into Engine(...)")

    def load(self, options: EngineOptions) -> tuple[Target, AnyDraft | None]:
        """Both models; no draft where the method needs none.

        Raises `Pard2Error` for whatever cannot be loaded or does not fit together.
        """
        draft = choose_draft(self.target, self.draft, options.method)
        options.check_has_draft(draft is not None)
        name = with_revision(self.target, self.revision)
        with accessing(self.token, self.local_files_only):
            dtype = parse_dtype(self.dtype, name)
            weight_format = asked_format(self.weights, parse_device(self.device), dtype)
            target = load_target(name, dtype, self.device, weight_format, options.max_batch)
            wanted = None if options.method is None else METHODS[options.method]
            if draft is None or (wanted is not None and not wanted.needs):
                return target, None
            dependent = None if wanted is None else wanted.loads_projection
            return target, load_draft(draft, target, dtype, dependent, sequences=options.max_batch)
