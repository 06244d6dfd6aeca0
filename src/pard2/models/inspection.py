"""What a draft's directory holds, said without running it and without its target."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig

from pard2.errors import Pard2Error
from pard2.models.checkpoint import MASK_FEATURE, PROJECTION_FILES, inexpressible, load_draft, read_projection_file, read_spec
from pard2.models.loading import load_config, load_tokenizer
from pard2.models.weightless import weightless_target

_REDOWNLOAD = "download it again"


@dataclass(frozen=True)
class DraftReport:
    """A draft checkpoint, field by field.

    parameters: stored in the directory, projection included. methods: what it can do, best first.
    target_hidden_size: width of the targets that its projection fits. projection: [draft hidden, target_dim]. inexpressible: what other
    engines cannot read (`checkpoint.inexpressible`). lacks: what is missing or broken, each with its way out.
    """

    name: str
    architecture: str
    layers: int
    hidden_size: int
    vocab_size: int
    parameters: int
    dtype: str
    methods: list[str]
    mask_token: int | None = None
    mask_text: str | None = None
    draft_tokens: int | None = None
    target_layers: list[int] | None = None
    target_dim: int | None = None
    target_hidden_size: int | None = None
    scale: float | None = None
    bias: bool | None = None
    shared_vocabulary: bool = False
    projection: list[int] | None = None
    normalise_features: bool = False
    mask_feature: bool = False
    vocabulary_size: int | None = None
    inexpressible: list[str] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)


def inspect_draft(directory: Path) -> DraftReport:
    """Read a checkpoint's config, the headers of its weight files and its projection.

    Raises `Pard2Error` if it is no checkpoint at all or its weights are corrupt; what leaves it usable in part goes into `lacks`.
    """
    name = str(directory)
    config = load_config(name)
    keys = config.to_dict()
    spec = read_spec(keys, name)
    text = config.get_text_config()
    is_pard2 = keys.get("spd_type") == "pard2" or bool(keys.get("pard2"))
    stored = _stored_shapes(directory)
    lacks = _missing_weights(config, stored, spec is not None and spec.shared_vocabulary)
    tokenizer = load_tokenizer(name)
    if tokenizer is None and not (spec and spec.shared_vocabulary):
        lacks.append("a tokenizer: only the sizes of the vocabularies can be compared with a target's")

    projection: dict[str, torch.Tensor] = {}
    dependent = False
    if spec is not None and spec.target_layers is not None:
        try:
            projection = read_projection_file(directory, name, required=True)
            missing = [key for key in ("target_proj.weight", *[MASK_FEATURE] * spec.mask_feature) if key not in projection]
            dependent = not missing
            if missing:
                lacks.append(f"`{missing[0]}` in its projection file: {_REDOWNLOAD}, or use it target-independent (-m pard2-ti)")
        except Pard2Error as error:
            lacks.append(str(error))
    elif is_pard2:
        lacks.append("`pard2_target_layers` in its config.json: add it, or use it target-independent (-m pard2-ti)")
    if spec is not None and "pard2_scale" not in keys and spec.target_layers:
        lacks.append(f"`pard2_scale` in its config.json: {spec.scale} is assumed")
    width = None if spec is None or not spec.target_layers else spec.target_dim
    weight = projection.get("target_proj.weight")
    return DraftReport(
        name=name,
        architecture=(config.architectures or [type(config).__name__])[0],
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        parameters=sum(torch.Size(shape).numel() for shape, _ in stored.values())
        + sum(t.numel() for t in projection.values() if t.is_floating_point()),
        dtype="/".join(sorted({kind for _, kind in stored.values()})),
        methods=_methods(spec is not None, is_pard2, dependent),
        mask_token=spec.mask_token if spec else None,
        mask_text=tokenizer.convert_ids_to_tokens(spec.mask_token) if spec and tokenizer else None,
        draft_tokens=spec.draft_tokens if spec else None,
        target_layers=list(spec.target_layers) if spec and spec.target_layers else None,
        target_dim=width,
        target_hidden_size=width // len(spec.target_layers) if spec and spec.target_layers and width else None,
        scale=spec.scale if spec and spec.target_layers else None,
        bias=spec.bias if spec and spec.target_layers else None,
        shared_vocabulary=spec.shared_vocabulary if spec else False,
        projection=list(weight.shape) if weight is not None else None,
        normalise_features=spec.normalise_features if spec else False,
        mask_feature=spec.mask_feature if spec else False,
        vocabulary_size=spec.vocabulary_size if spec else None,
        inexpressible=inexpressible(spec) if spec else [],
        lacks=lacks,
    )


def fit(directory: Path, target: str, methods: list[str]) -> dict[str, str]:
    """For each method, "yes" or why this draft cannot serve this target so. The target's weights are not loaded."""
    model = weightless_target(target)
    answers = {}
    for method in methods:
        try:
            load_draft(str(directory), model, torch.float32, target_dependent=method == "pard2-td")
            answers[method] = "yes"
        except Pard2Error as error:
            answers[method] = str(error)
    return answers


def _methods(masked: bool, pard2: bool, dependent: bool) -> list[str]:
    if not masked:
        return ["vsd"]
    if not pard2:
        return ["pard"]
    return ["pard2-td", "pard2-ti"] if dependent else ["pard2-ti"]


def _stored_shapes(directory: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and dtype of every tensor in the weight files, from their headers."""
    files = sorted(file for file in directory.glob("*.safetensors") if file.name not in PROJECTION_FILES)
    if not files:
        raise Pard2Error(f"{directory} holds no *.safetensors weights; {_REDOWNLOAD}")
    shapes: dict[str, tuple[list[int], str]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - not a dictionary
                    part: Any = tensors.get_slice(key)
                    shapes[key] = (part.get_shape(), part.get_dtype())
        except (OSError, SafetensorError) as error:
            raise Pard2Error(f"{file} is corrupt ({error}); {_REDOWNLOAD}") from None
    return shapes


def _missing_weights(config: PreTrainedConfig, stored: dict[str, tuple[list[int], str]], shared_vocabulary: bool) -> list[str]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = (names[id(part)] + ".weight" for part in (model.get_input_embeddings(), model.get_output_embeddings()))
    elsewhere = {embedding, head} if shared_vocabulary else {head} if config.get_text_config().tie_word_embeddings else set()
    wanted = {key: list(tensor.shape) for key, tensor in model.state_dict().items() if key not in elsewhere}
    wrong = [key for key, shape in wanted.items() if key not in stored or stored[key][0] != shape]
    if not wrong:
        return []
    return [f"{len(wrong)} of {len(wanted)} weights, or has them in another shape, first {wrong[0]}: {_REDOWNLOAD}"]
