"""What the directory of an EAGLE-3 draft holds, said without running it and without its target."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pard2.checkpoints.draft_report import DraftReport
from pard2.checkpoints.eagle3 import checked_eagle3, read_eagle3_keys
from pard2.checkpoints.eagle3_config import Eagle3Keys
from pard2.checkpoints.eagle3_health import untrained
from pard2.checkpoints.eagle3_weights import EMBEDDING, read_tensors
from pard2.checkpoints.engines import eagle3_runs_in
from pard2.checkpoints.speculators import MODEL_TYPE
from pard2.errors import Pard2Error
from pard2.models.draft_kind import DraftKind
from pard2.models.identity import NAME_KEY
from pard2.runtime.windows import attention_windows

_NORMS = {"none": "none before fc", "joint": "one before fc over all hidden states (norm_before_fc)", "each": "one before fc for each (fc_norm)"}


def inspect_eagle3(directory: Path, keys: dict[str, Any]) -> DraftReport:
    """Read a checkpoint's weights and compare them with its config.

    keys: of its config.json.

    Raises `Pard2Error` if its config or its files are damaged; what they lack goes into `lacks`.
    """
    name = str(directory)
    said = read_eagle3_keys(name, keys)
    stored = read_tensors(directory, name)
    layers = said.layers or (0,) * said.num_layers
    faults = []
    try:
        draft = checked_eagle3(name, said, layers, nn.Module(), stored)
        if not draft.owns_embedding and draft.hidden_size != said.target_hidden_size:
            raise Pard2Error(f"`{EMBEDDING}`: the target's is {said.target_hidden_size} wide, the draft {draft.hidden_size}; download it again")
        faults = untrained({key: stored[key] for key in draft.state_dict()}, None)
    except Pard2Error as error:
        faults, whole = [str(error)], False
    else:
        whole = True
    return DraftReport(
        name=name,
        architecture="Eagle3Draft",
        layers=said.config.num_hidden_layers,
        hidden_size=said.config.hidden_size,
        vocab_size=said.config.vocab_size,
        parameters=sum(tensor.numel() for tensor in stored.values() if tensor.is_floating_point()),
        dtype="/".join(sorted({str(one.dtype).removeprefix("torch.").replace("float", "f").upper() for one in _numbers(stored)})),
        kind=DraftKind.EAGLE3,
        draft_tokens=said.draft_tokens,
        target_layers=list(said.layers) if said.layers else None,
        target_dim=said.num_layers * said.target_hidden_size,
        target_hidden_size=said.target_hidden_size,
        vocabulary_size=said.size,
        target=(said.made_for or {}).get(NAME_KEY),
        layout="speculators" if MODEL_TYPE in keys else "eagle3",
        layer=_layer(said),
        fc=list(stored["fc.weight"].shape) if "fc.weight" in stored else None,
        norms=_norms(said),
        own_embedding=EMBEDDING in stored,
        runs_in=eagle3_runs_in(keys, said, whole),
        lacks=[*said.doubts, *faults],
    )


def _numbers(stored: Mapping[str, Tensor]) -> list[Tensor]:
    return [tensor for tensor in stored.values() if tensor.dtype not in (torch.bool, torch.int64)]


def _layer(said: Eagle3Keys) -> str:
    config = said.config
    kind = {"llama": "Llama", "qwen3": "Qwen 3"}[config.model_type]
    window = attention_windows(config)[0]
    rope = config.rope_parameters
    words = [
        f"{kind}'s, {config.num_attention_heads} heads over {config.num_key_value_heads} of {config.head_dim}, MLP {config.intermediate_size}",
        f"{rope['rope_type']} rotary frequencies of base {rope['rope_theta']:g}",
    ]
    if (part := rope.get("partial_rotary_factor", 1.0)) != 1.0:
        words.append(f"over {part:g} of a head")
    return ", ".join(words + ([f"window {window}"] if window is not None else []))


def _norms(said: Eagle3Keys) -> str:
    residual = "normalised feature" if said.norm_before_residual else "feature as it is"
    following = "after" if said.norm_output else "before"
    return f"{_NORMS[said.feature_norm]}; residual of the {residual}; the next depth reads the state {following} the final norm"
