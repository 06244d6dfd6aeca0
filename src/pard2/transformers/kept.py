"""What stays with a model from call to call: its target, the drafts that were loaded for it, an engine.

It lies in an attribute of the model itself, so that it goes when the model goes: a table elsewhere would keep
the model, which its engine holds, for ever.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
import transformers

from pard2.checkpoints.draft_spec import read_spec
from pard2.checkpoints.loading import load_tokenizer
from pard2.checkpoints.read import check_vocabulary, load_draft
from pard2.engine.engine import Engine
from pard2.engine.methods import NGRAM, find_method
from pard2.engine.options import EngineOptions
from pard2.errors import Pard2Error
from pard2.hf import PreTrainedModel, Tokenizer
from pard2.models.any_draft import AnyDraft
from pard2.models.draft import Draft
from pard2.models.eagle3 import Eagle3Draft
from pard2.models.target import Target

DraftName: TypeAlias = str | os.PathLike[str] | AnyDraft | PreTrainedModel

_ATTRIBUTE = "_pard2_kept"
_FEWEST_PLACES = 256  # of a cache: the next power of two from here on, so that a slightly longer text needs no new one
_NAMES = "a directory, a hub id, 'smollm2', a draft of `load_draft`, or a causal LM of transformers"


class _Kept:
    """Of one model. A copy of the model starts without it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.lock = threading.RLock()  # a stopping criterion may itself generate
        with _as_it_was(model):
            name = model.name_or_path or type(model).__name__
            self.target = Target(model, None, name)  # which shows no text, and so needs no tokenizer
            self._for_drafts = Target(model, _tokenizer(model), name)  # they are compared by it
        self._weights = _places(model)
        self._drafts: dict[tuple[str, bool | None], AnyDraft] = {}
        self._wrapped: dict[int, Draft] = {}
        self._engine: Engine | None = None
        self._made_for: tuple[object, ...] = ()

    def __deepcopy__(self, _memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return nullcontext, ()  # of those that anybody can unpickle, one that holds nothing

    def fits(self, model: PreTrainedModel) -> bool:
        """Whether the weights are those that the decoder holds views of: changed in
        place they are, replaced or moved they are not."""
        return self.target.model is model and self._weights == _places(model)

    def engine(self, draft: DraftName | None, options: EngineOptions, positions: int) -> Engine:
        """One that decodes so, with room for so many positions; the last one, where it does."""
        used = self._draft(draft, options)
        made_for = (id(used), options)
        enough = min(max(_FEWEST_PLACES, 1 << (positions - 1).bit_length()), self.target.context_length + 1)
        if options.tree != "auto":
            enough = max(enough, 2 * options.tree)
        if self._engine is None or self._made_for != made_for or self._engine.cache_tokens < positions:
            self._engine = None  # and its cache with it, before there is another
            asked = {name: value for name, value in vars(options).items() if name != "cache_tokens"}
            with _as_it_was(self.target.model):
                self._engine = Engine(self.target, used, cache_tokens=enough, **asked)
            self._made_for, self._weights = made_for, _places(self.target.model)  # the decoder has laid them together
        return self._engine

    def _draft(self, draft: DraftName | None, options: EngineOptions) -> AnyDraft | None:
        wanted = None if options.method is None else find_method(options.method)
        if wanted is not None and not wanted.needs:
            return None
        if draft is None:
            raise Pard2Error(f"`draft` is missing: give {_NAMES}; or say `method` {NGRAM}, which needs none")
        if isinstance(draft, str | os.PathLike):
            key = str(os.fspath(draft)), None if wanted is None else wanted.loads_projection
            if key not in self._drafts:
                with _as_it_was(self.target.model):
                    self._drafts[key] = load_draft(key[0], self._for_drafts, self.target.model.dtype, key[1])
            return self._drafts[key]
        if isinstance(draft, transformers.PreTrainedModel):
            draft = self._wrap(draft)
        if not isinstance(draft, Draft | Eagle3Draft):
            raise Pard2Error(f"`draft` is a {type(draft).__name__}; give {_NAMES}")
        _check_fits(draft, self._for_drafts)
        return draft

    def _wrap(self, lm: PreTrainedModel) -> Draft:
        """A causal LM as a draft: an ordinary one, or PARD's, whose config has a mask token."""
        if id(lm) not in self._wrapped:  # kept there, so that no other can have its id
            name = lm.name_or_path or type(lm).__name__
            self._wrapped[id(lm)] = Draft(lm, read_spec(lm.config.to_dict(), name), name=name)
        return self._wrapped[id(lm)]


@contextmanager
def kept_of(model: PreTrainedModel) -> Iterator[_Kept]:
    """What stays with this model, for one caller at a time; made anew where its weights were replaced.

    Raises `Pard2Error` for a model that cannot be decoded by an engine as it decodes by itself.
    """
    _check_model(model)
    kept = vars(model).get(_ATTRIBUTE)
    if not isinstance(kept, _Kept) or not kept.fits(model):
        kept = vars(model)[_ATTRIBUTE] = _Kept(model)
    with kept.lock:
        yield kept


def forget(model: PreTrainedModel) -> None:
    """Let go of the drafts, the engine and the cache that earlier calls have left with a model."""
    vars(model).pop(_ATTRIBUTE, None)


def _check_model(model: PreTrainedModel) -> None:
    """Raises `Pard2Error` for a model in a state that the engine would not see."""
    name = model.name_or_path or type(model).__name__
    if model.training:
        raise Pard2Error(f"{name!r} is in training mode, and its dropout would choose along; say `model.eval()` first")
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) != 1 or devices == ["meta"]:
        raise Pard2Error(f"`device_map`: the weights of {name!r} lie on {', '.join(devices)}; load it on one device, without offloading")
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        raise Pard2Error(f"`tp_plan`: the weights of {name!r} are spread over processes; load it in one")
    for place, module in model.named_modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if not str(getattr(hook, "__module__", "")).startswith("transformers."):  # its own only watch
                raise Pard2Error(
                    f"{name!r} has a forward hook on {place or 'the model'}, which passes of several tokens would not run; remove it first"
                )


def _check_fits(draft: AnyDraft, target: Target) -> None:
    """Raises `Pard2Error` for a loaded draft that is not one for this target, as it is."""
    if (draft.lm if isinstance(draft, Draft) else draft).training:
        raise Pard2Error(f"`draft` {draft.name!r} is in training mode; say `.eval()` first")
    if draft.device != target.device:
        raise Pard2Error(f"`draft` {draft.name!r} is on {draft.device} and the model on {target.device}; load it there")
    if isinstance(draft, Draft):
        check_vocabulary(draft.name, draft.vocab_size, draft.tokenizer, target)
        layers = () if draft.spec is None or draft.projection is None else draft.spec.target_layers or ()
        if layers and draft.projection.weight.shape[1] != len(layers) * target.hidden_size:
            raise Pard2Error(
                f"`draft` {draft.name!r} reads {draft.projection.weight.shape[1]} features, {len(layers)} layers of {target.name!r} "
                f"have {len(layers) * target.hidden_size}; give the draft of this model"
            )


@contextmanager
def _as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """Within, a target is made of the model, which freezes it; the caller may want to train it on."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _places(model: PreTrainedModel) -> tuple[tuple[int, torch.dtype], ...]:
    return tuple((parameter.data_ptr(), parameter.dtype) for parameter in model.parameters())


def _tokenizer(model: PreTrainedModel) -> Tokenizer | None:
    """The one beside the model, which says whether a draft's ids mean the same; None where there is none."""
    try:
        return load_tokenizer(model.name_or_path) if model.name_or_path else None
    except Pard2Error:
        return None
