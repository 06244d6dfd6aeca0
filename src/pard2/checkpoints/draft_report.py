"""What is said of a draft checkpoint."""

from dataclasses import dataclass, field

from pard2.models.draft_kind import DraftKind


@dataclass(frozen=True, kw_only=True)
class DraftReport:
    """A draft checkpoint, field by field; what is not explained here is as in `DraftSpec`.

    parameters: numbers stored in the directory, projection included.
    kind: what it can do.
    mask_text: the mask token as text.
    target_hidden_size: width of the targets that its projection fits.
    target: name of the one that it was made for.
    projection: its shape, [draft hidden, target_dim].
    layout, layer, fc, norms, own_embedding: of an EAGLE-3 draft alone: `eagle3` or `speculators`, its layer
        in words, the shape of `fc`, which norms it has beside the layer's, and whether it owns an embedding;
        `vocabulary_size` is D, the tokens that it can propose.
    runs_in: for each engine "yes" and how, or "no" and what is in the way.
    inexpressible: what other engines cannot read (`draft_spec.inexpressible`).
    lacks: what is missing or broken, each with what mends it.
    """

    name: str
    architecture: str
    layers: int
    hidden_size: int
    vocab_size: int
    parameters: int
    dtype: str
    kind: DraftKind
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
    target: str | None = None
    layout: str | None = None
    layer: str | None = None
    fc: list[int] | None = None
    norms: str | None = None
    own_embedding: bool | None = None
    runs_in: dict[str, str] = field(default_factory=dict)
    inexpressible: list[str] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)
