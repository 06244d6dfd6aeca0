"""Models on torch's `meta` device, without weights: enough to tell what they are,
what they cost and what fits."""

import torch
import transformers
from torch import nn

from pard2.checkpoints.draft_spec import read_spec
from pard2.checkpoints.eagle3 import is_eagle3, load_eagle3
from pard2.checkpoints.embedded import EMBEDDED, embedded_draft
from pard2.checkpoints.foreign import refuse_others
from pard2.checkpoints.loading import config_keys, empty_model, load_config, load_errors, load_generation_config, load_tokenizer
from pard2.checkpoints.quantisation import check_quantisation
from pard2.checkpoints.read import check_vocabulary, without_vocabulary
from pard2.models.any_draft import AnyDraft
from pard2.models.draft import Draft
from pard2.models.target import Target


def meta_target(name: str) -> Target:
    """The target's shapes, with its tokenizer; it cannot run. Raises as loading it would."""
    config = load_config(name)
    check_quantisation(config, name)
    model = empty_model(config, name)
    model.generation_config = load_generation_config(name) or model.generation_config
    return Target(model, load_tokenizer(name), name)


def meta_draft(name: str, target: Target) -> AnyDraft:
    """The shapes of a draft, or of an ordinary LM, with its tokenizer; it cannot run.

    Only its config and tokenizer are read. Raises `Pard2Error` where those do not fit the target.
    """
    if name == EMBEDDED:
        name = embedded_draft()
    keys = config_keys(name)
    refuse_others(keys, name)
    if is_eagle3(keys):
        return load_eagle3(name, target, torch.float32)
    config = load_config(name)
    spec = read_spec(config.to_dict(), name)
    tokenizer = load_tokenizer(name)
    check_vocabulary(name, config.get_text_config().vocab_size, tokenizer, target)
    hidden = config.get_text_config().hidden_size
    projection = mask_feature = None
    with load_errors(name), torch.device("meta"):
        if spec is not None and spec.shared_vocabulary:
            lm = without_vocabulary(config, torch.float32)
        else:
            lm = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        if spec is not None and spec.target_layers is not None:
            target.check_layers(spec.target_layers)
            projection = nn.Linear(target.hidden_size * len(spec.target_layers), hidden, bias=spec.bias)
            mask_feature = torch.empty(hidden) if spec.mask_feature else None
        draft = Draft(lm, spec, projection, tokenizer or target.tokenizer, name, mask_feature)
        if spec is not None and spec.shared_vocabulary:
            token_ids = None if spec.vocabulary_size is None else torch.arange(spec.vocabulary_size)
            draft.share_vocabulary(target.model.get_input_embeddings(), target.model.get_output_embeddings(), token_ids=token_ids)
    return draft
