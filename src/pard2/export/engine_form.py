"""A draft in the form that another engine loads, and what that engine cannot do with it.

What each engine reads is said in docs/engines.md, with versions.
"""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from pard2.checkpoints.draft_spec import read_spec
from pard2.checkpoints.eagle3 import check_eagle3, is_eagle3, load_eagle3, open_eagle3, read_eagle3_keys, save_eagle3
from pard2.checkpoints.foreign import refuse_others
from pard2.checkpoints.loading import config_keys, load_config, load_target, parse_dtype
from pard2.checkpoints.meta import meta_target
from pard2.checkpoints.read import checkpoint_directory, load_draft
from pard2.checkpoints.write import save_draft
from pard2.errors import Pard2Error
from pard2.export.engine_names import EngineName
from pard2.models.any_draft import AnyDraft
from pard2.models.draft import Draft
from pard2.models.eagle3 import Eagle3Draft
from pard2.models.identity import identity_of

# Where vLLM looks for the mask token before it looks at `pard_token`.
_BEFORE_PARD_TOKEN = ("mask_token_id", "dspark_noise_token_id")


@dataclass(frozen=True, kw_only=True)
class EngineForm:
    """A draft as an engine gets it.

    draft: complete; every number as it is stored.
    limits: what the engine cannot do with it, and what was changed for it, a sentence each.
    """

    draft: AnyDraft
    engine: EngineName
    limits: tuple[str, ...]

    def write(self, directory: Path) -> None:
        """The directory appears whole."""
        if isinstance(self.draft, Eagle3Draft):
            save_eagle3(self.draft, directory, layout="speculators" if self.engine == "speculators" else "eagle3")
        else:
            save_draft(self.draft, directory)


def engine_form(name: str, engine: EngineName, target: str | None) -> EngineForm:
    """Read a draft and make it whole.

    name: a directory, hub id or `smollm2`.
    target: that it is for. Embedding, head and tokenizer of a draft that borrows them are taken from it; of
        another draft's target only config and tokenizer are read. An EAGLE-3 draft that says all itself
        needs none.

    Raises `Pard2Error` for a draft that the engine has no form for, or that does not fit the target.
    """
    name = str(checkpoint_directory(name))
    keys = config_keys(name)
    refuse_others(keys, name)
    if is_eagle3(keys):
        return EngineForm(draft=_whole_eagle3(name, target), engine=engine, limits=())
    if target is None:
        raise Pard2Error(
            f"{name!r} needs its target for this, to take from it what is missing and to compare the vocabularies; name it with `target`"
        )
    draft, size = _whole_lm(name, target)
    if engine == "speculators" or (engine == "sglang" and draft.spec is not None):
        raise Pard2Error(
            f"{name!r} is {'an ordinary language model' if draft.spec is None else 'a PARD draft'}, which {engine} does not read; use `to` vllm"
        )
    if draft.lm.config.get_text_config().vocab_size != size:
        raise Pard2Error(
            f"{name!r} has a vocabulary of {draft.lm.config.get_text_config().vocab_size}, its target {target!r} one of {size}; "
            f"{engine} wants them equal, so it runs in pard2 alone"
        )
    if draft.tokenizer is None:
        raise Pard2Error(f"neither {name!r} nor {target!r} has a tokenizer, which {engine} wants; put its files into the draft's directory")
    return EngineForm(draft=draft, engine=engine, limits=(*_limits(draft, engine), *_mended(draft, target)))


def _whole_eagle3(name: str, target: str | None) -> Eagle3Draft:
    keys = read_eagle3_keys(name, config_keys(name))
    layers = keys.layers
    if target is not None:
        fitting = load_eagle3(name, meta_target(target), torch.float32)
        check_eagle3(fitting, name)
        layers = fitting.spec.target_layers
        if keys.made_for is None:  # its name alone: whether it is that one's features that it knows, nobody has said
            keys = dataclasses.replace(keys, made_for=identity_of(target, []))
    if layers is None:
        raise Pard2Error(f"{name!r} does not say which hidden states it reads, but for the default ones of its target; name that with `target`")
    return open_eagle3(name, keys, layers, torch.nn.Module())


def _whole_lm(name: str, target: str) -> tuple[Draft, int]:
    """The draft, and the size of its target's vocabulary."""
    spec = read_spec(load_config(name).to_dict(), name)
    dtype = parse_dtype("auto", name)
    borrows = spec is not None and spec.shared_vocabulary
    fitting = load_target(target, dtype, "cpu", "plain") if borrows else meta_target(target)
    draft = load_draft(name, fitting, dtype, weight_format="plain", device=torch.device("cpu"))
    assert isinstance(draft, Draft)
    return draft, fitting.vocab_size


def _limits(draft: Draft, engine: EngineName) -> list[str]:
    found, spec = [], draft.spec
    if spec is not None and spec.target_layers:
        with_features = "with the target's features (TD) where pard2 is installed beside vLLM, else without them (TI)"
        found.append(f"it drafts {with_features if engine == 'vllm' else 'without the features of its target (TI)'}; its projection stands beside it")
        if spec.normalise_features or spec.mask_feature:
            found.append("`pard2_*` keys that only pard2 knows say how its features are made; another engine's TD would need them, too")
    if draft.short_head is not None:
        part, whole = len(draft.short_head.token_ids), draft.vocab_size
        found.append(f"it proposes from all {whole:,} tokens there, in place of {part:,}: a larger product, and hardly another acceptance")
    return found


def _mended(draft: Draft, target: str) -> list[str]:
    """Changes the config where an engine would misread it."""
    config = draft.lm.config = copy.deepcopy(draft.lm.config)
    found = []
    for key in _BEFORE_PARD_TOKEN if draft.spec is not None else ():
        if getattr(config, key, None) is not None:
            delattr(config, key)
            found.append(f"`{key}` was taken out of its config.json: vLLM would have read it in place of `pard_token`")
    longest = load_config(target).get_text_config().max_position_embeddings
    if config.max_position_embeddings < longest:
        found.append(
            f"`max_position_embeddings` was raised from {config.max_position_embeddings:,} to the target's {longest:,}: vLLM ends a batch there"
        )
        config.max_position_embeddings = longest
    return found
