"""What a run starts from: its examples, and a draft, which is cut out of the target or made of a model."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from pard2.checkpoints.meta import meta_target
from pard2.checkpoints.pruning import FeatureOptions, as_parallel_draft, cut_draft, even_layers, unused_token
from pard2.checkpoints.quantisation import check_quantisation
from pard2.checkpoints.twin import check_decodable
from pard2.config import TrainConfig
from pard2.data.corpus import Examples
from pard2.data.examples import load_examples
from pard2.data.features import LAST_STATE
from pard2.data.state_cache import stored_layers
from pard2.errors import Pard2Error
from pard2.models.any_draft import AnyDraft
from pard2.models.draft import Draft, SharedEmbedding
from pard2.models.draft_kind import DraftKind
from pard2.models.target import Target
from pard2.train.compatibility import check_kinds, check_lengths
from pard2.train.given_draft import check_held, read_given
from pard2.train.initial_eagle3 import DEFAULT_VOCABULARY, given_eagle3, new_eagle3


def meta_pair(config: TrainConfig, stand_in: bool = False) -> tuple[Target, AnyDraft]:
    """The run's target and draft on the `meta` device: their shapes.

    stand_in: the target is a shape in place of a model, and so has no tokenizer.

    Raises `Pard2Error` as the run would, as far as can be told without weights.
    """
    target = meta_target(config.target.name)
    check_decodable(target.model, target.name)
    if target.tokenizer is None and not stand_in:
        raise Pard2Error(f"{config.target.name!r} has no tokenizer, which training needs")
    with torch.device("meta"):
        draft = initial_draft(config, target)
    if isinstance(draft, Draft):
        check_decodable(draft.lm, draft.name)
    check_kinds(target, draft, "dense" if config.loop.attention == "dense" else "blocks", config.asks_target)
    return target, draft


def run_examples(config: TrainConfig, target: Target, draft: AnyDraft) -> Examples:
    """The run's conversations in the target's tokens; both models may be on the `meta` device.

    Raises as `load_examples` and `check_lengths` do.
    """
    data = config.data
    arguments = data.chat_template_kwargs or {}
    examples = load_examples(
        data.train, target.tokenizer, target.eos_token_ids, data.max_length, data.on_long, vocab_size=target.vocab_size, arguments=arguments
    )
    check_lengths(target, draft, examples)
    return examples


def initial_draft(config: TrainConfig, target: Target, examples: Examples | None = None) -> AnyDraft:
    """The draft that a run starts from, in float32: whatever the target's precision, small updates need it.

    examples: of the run, whose answers tell which tokens a part of the vocabulary is made of; None where the
        draft has no weights and it does not matter which.

    Raises `Pard2Error` for a start that does not fit the target or the run.
    """
    wanted = config.draft
    if not config.kind.cut:
        if wanted.path is not None:
            return given_eagle3(config, target)
        size = wanted.vocabulary_size or min(DEFAULT_VOCABULARY, target.vocab_size)
        return new_eagle3(config, target, answer_vocabulary(examples, size, target.vocab_size))
    if wanted.share_vocabulary and config.target.dtype not in ("float32", config.loop.precision):
        raise Pard2Error(
            f"draft.share_vocabulary trains through the target's own tables; give loop.precision={config.target.dtype}, or target.dtype=float32"
        )
    options = None
    if config.kind.features:
        options = FeatureOptions(scale=wanted.scale, normalise_features=wanted.normalise_features, mask_feature=wanted.learn_mask_feature)
    chosen = tuple(wanted.target_layers) if wanted.target_layers else None
    if wanted.path is not None:
        return _given_draft(config, target, examples, chosen, options)
    layers = even_layers(wanted.layers, target.num_states - 1) if isinstance(wanted.layers, int) else list(wanted.layers or [])
    vocabulary = None if wanted.vocabulary_size is None else answer_vocabulary(examples, wanted.vocabulary_size, target.vocab_size)
    draft = cut_draft(
        target,
        layers,
        _mask_token(config, target) if config.kind.masks else None,
        config.objective.draft_tokens,
        chosen,
        config.shares_tables,
        vocabulary,
        options,
    ).float()
    if wanted.share_vocabulary and not config.shares_tables:
        for table in draft.tables:  # an ordinary LM holds its own copy of them
            table.requires_grad_(False)
    return draft


# What a draft to start from must be, by method.
_STARTS = {
    "pard2": (DraftKind.PROJECTED, "a PARD-2 draft or an ordinary LM; make one with `pard2 draft init`"),
    "pard": (DraftKind.MASKED, "a PARD draft or an ordinary LM"),
    "ar": (DraftKind.LM, "an ordinary LM"),
}


def _given_draft(
    config: TrainConfig, target: Target, examples: Examples | None, layers: tuple[int, ...] | None, options: FeatureOptions | None
) -> Draft:
    """The draft that `draft.path` names.

    layers, options: of the features that an ordinary LM is to take in.
    """
    wanted, k = config.draft, config.objective.draft_tokens
    assert wanted.path is not None
    draft = read_given(wanted.path, target)
    kind, words = _STARTS[config.method]
    if not isinstance(draft, Draft):
        raise Pard2Error(f"draft.path {wanted.path!r} must be {words} (method={config.method})")
    check_quantisation(draft.lm.config, draft.name, plain=True)
    if draft.spec is None and config.kind.masks:
        draft = as_parallel_draft(draft, target, _mask_token(config, target), k, layers, options)
    if draft.kind is not kind:
        raise Pard2Error(f"draft.path {wanted.path!r} must be {words} (method={config.method})")
    if wanted.share_vocabulary and not isinstance(draft.lm.get_input_embeddings(), SharedEmbedding):
        raise Pard2Error(f"draft.path {wanted.path!r} has a vocabulary of its own; set draft.share_vocabulary=false")
    if draft.spec is not None:
        if draft.spec.draft_tokens > k:
            raise Pard2Error(
                f"draft.path {wanted.path!r} proposes K = {draft.spec.draft_tokens} tokens; set objective.draft_tokens to as many, or more"
            )
        _check_same(config, draft)
        if draft.short_head is not None and wanted.vocabulary_size not in (None, draft.spec.vocabulary_size):
            draft.propose_from(answer_vocabulary(examples, wanted.vocabulary_size, target.vocab_size, draft.short_head.token_ids))
        # From now on it learns this target, and K masks: no weight depends on their number.
        draft.spec = dataclasses.replace(draft.spec, made_for=target.identity, draft_tokens=k)
    return draft.requires_grad_(True)


def read_layers(draft: AnyDraft) -> tuple[int, ...]:
    """The hidden states that a step reads: those of the features, else the last, for the target's logits."""
    return (draft.spec and draft.spec.target_layers) or LAST_STATE


def cache_layers(config: TrainConfig, draft: AnyDraft) -> tuple[int, ...]:
    """The hidden states that the run's cache holds: a run without features reads any cache that is there."""
    assert config.features.cache is not None
    stored = None if config.kind.features else stored_layers(config.features.cache)
    return stored or read_layers(draft)


def answer_vocabulary(examples: Examples | None, size: int, vocab_size: int, kept: Tensor | None = None) -> Tensor:
    """[size] ids, rising, of the tokens that occur most in the answers.

    Of equals, and where too few occur, the lowest ids come first: a tokenizer of merges numbers its tokens by
    how common they are in text at large.

    examples: None for a draft without weights, to which it does not matter which.
    kept: ids that are taken in any case, at most `size`.

    Raises `Pard2Error` for more than there are.
    """
    if size > vocab_size:
        raise Pard2Error(f"draft.vocabulary_size={size}: the target has {vocab_size} tokens")
    if examples is None:
        return torch.arange(size, device="cpu")
    counts = np.bincount(examples.tokens[examples.predicted], minlength=vocab_size)
    if kept is not None:
        counts[kept.cpu().numpy()] = len(examples.tokens) + 1
    return torch.tensor(np.sort(np.argsort(-counts, kind="stable")[:size]), device="cpu")


def _check_same(config: TrainConfig, draft: Draft) -> None:
    """Raises `Pard2Error` if the run asks for what its PARD or PARD-2 draft was not made with."""
    wanted, spec = config.draft, draft.spec
    held = {
        "mask_token": spec.mask_token,
        "target_layers": list(spec.target_layers or ()),
        "scale": spec.scale,
        "normalise_features": spec.normalise_features,
        "learn_mask_feature": spec.mask_feature,
        "vocabulary_size": spec.vocabulary_size,
    }
    if spec.vocabulary_size is not None and (wanted.vocabulary_size or 0) > spec.vocabulary_size:
        del held["vocabulary_size"]  # grows
    check_held(wanted, held, "start from an ordinary LM or a cut")


def _mask_token(config: TrainConfig, target: Target) -> int:
    return unused_token(target) if config.draft.mask_token is None else config.draft.mask_token
