"""The EAGLE-3 draft that a run starts from: a new layer for its target, or one that was trained before."""

import dataclasses

from torch import Tensor, nn

from pard2.config import TrainConfig
from pard2.errors import Pard2Error
from pard2.models.eagle3 import Eagle3Draft, Eagle3Spec, default_layers, layer_config
from pard2.models.target import Target
from pard2.train.given_draft import check_held, read_given

DEFAULT_VOCABULARY = 32_000  # the published number
# Of all matrices at the start. A head that began as the target's rows was tried on the embedded target:
# higher losses in the first 50 steps.
_STD = 0.02


def new_eagle3(config: TrainConfig, target: Target, token_ids: Tensor) -> Eagle3Draft:
    """An untrained draft in float32, on the target's device.

    token_ids: [D] that it shall propose.

    Raises `Pard2Error` for a target with too few layers, and for features that it lacks.
    """
    wanted = config.draft
    layers = tuple(wanted.target_layers or default_layers(target.num_states - 1))
    target.check_layers(layers)
    spec = Eagle3Spec(
        target_layers=tuple(layer % target.num_states for layer in layers),
        target_hidden_size=target.hidden_size,
        draft_tokens=config.objective.draft_tokens,
        norm_before_residual=wanted.norm_before_residual,
        norm_output=wanted.norm_output,
        feature_norm=wanted.feature_norm,
        made_for=target.identity,
    )
    draft = Eagle3Draft(
        layer_config(target.config), spec, token_ids, target.model.get_input_embeddings(), target.tokenizer, f"an EAGLE-3 draft for {target.name}"
    )
    for module in draft.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=_STD)
    return draft.to(target.device)


def given_eagle3(config: TrainConfig, target: Target) -> Eagle3Draft:
    """The draft that `draft.path` names, in float32.

    Raises `Pard2Error` for another kind of draft, and for what the run asks for and the draft was not made
    with.
    """
    wanted = config.draft
    assert wanted.path is not None
    draft = read_given(wanted.path, target)
    if not isinstance(draft, Eagle3Draft):
        raise Pard2Error(f"draft.path {wanted.path!r} must be an EAGLE-3 draft (method=eagle3); leave it out for a new one")
    spec = draft.spec
    layers = list(spec.target_layers)
    if wanted.target_layers is not None and [layer % target.num_states for layer in wanted.target_layers] == layers:
        layers = wanted.target_layers  # the same, counted from the end
    held = {
        "target_layers": layers,
        "vocabulary_size": len(draft.token_ids),
        "norm_before_residual": spec.norm_before_residual,
        "norm_output": spec.norm_output,
        "feature_norm": spec.feature_norm,
    }
    check_held(wanted, held, "draft.path")
    # From now on it learns this target, and chains of this depth: no weight depends on it.
    draft.spec = dataclasses.replace(spec, made_for=target.identity, draft_tokens=config.objective.draft_tokens)
    draft.requires_grad_(True)
    if draft.owns_embedding:
        draft.embed_tokens.requires_grad_(False)
    return draft
