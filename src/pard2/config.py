"""One typed schema for a training run, documented field by field.

A run is a YAML file of its method and these sections; any field can be overridden as
`section.field=value`. An unknown or mistyped key is an error that names the nearest known one.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveInt, model_serializer, model_validator

from pard2.config_methods import METHODS, TrainingMethod, fit_method, without_unfit
from pard2.errors import Pard2Error

_WARMUP_STEPS = 20

# YAML 1.1 takes 1e-3 for text; it wants 1.0e-3.
Number = Annotated[float, BeforeValidator(lambda value: float(value) if isinstance(value, str) else value)]
DecayRate = Annotated[Number, Field(ge=0, lt=1)]


class _Section(BaseModel):
    # Strict: `true` is no number and a number no name, though YAML's 1 is a float where one is wanted.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, str_min_length=1)


class TargetConfig(_Section):
    name: str = Field(description="hub id, directory, .gguf file, or smollm2")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id; name: ID@REVISION says the same")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="precision of the frozen target while training")
    shape: dict[str, Any] | None = Field(None, description="what its config.json says; --dry-run plans with it where the target cannot be read")

    @model_validator(mode="after")
    def _name_says_revision(self) -> "TargetConfig":
        if self.revision is not None and not self.name.endswith(f"@{self.revision}"):
            self.__dict__["name"] = f"{self.name}@{self.revision}"  # which is what every part of a run loads
        return self


class DraftConfig(_Section):
    layers: list[int] | int | None = Field(None, description="layers of the target to cut the draft from: a list, or how many evenly spaced")
    path: str | None = Field(
        None, description="start from this model in place of a cut: a small LM of the target's family, or a PARD-2 draft (of `pard2 draft init`, say)"
    )
    shape: dict[str, Any] | None = Field(None, description="what the config.json of `path` says; as target.shape")
    mask_token: int | None = Field(None, description="id that fills the mask slots; by default an unused one")
    target_layers: list[int] | None = Field(None, description="hidden states that feed the projection; by default [-1, -8, -16, -24]")
    scale: Number = Field(0.02, gt=0, description="factor of the projected feature")
    share_vocabulary: bool = Field(False, description="use the target's embedding and head, frozen; train only the mask token's row of it")
    vocabulary_size: PositiveInt | None = Field(
        None,
        description="propose only so many tokens, those that the training answers use most; with share_vocabulary. By default all, "
        "or those of the draft to go on from, which a larger number adds to",
    )
    standardise_features: bool = Field(
        False, description="learn the projection for features divided by their standard deviation; folded into it in every checkpoint"
    )
    normalise_features: bool = Field(
        False, description="ablation: divide each hidden state of a feature by its root mean square; only pard2 can run such a draft"
    )
    learn_mask_feature: bool = Field(
        False, description="ablation: masks get one learned vector in place of their anchor's projected feature; only pard2 can run such a draft"
    )

    norm_before_residual: bool = Field(False, description="EAGLE-3: the residual stream begins with the normalised feature; SGLang cannot run that")
    norm_output: bool = Field(False, description="EAGLE-3: the next depth reads the state after the final norm")
    feature_norm: Literal["none", "joint", "each"] = Field(
        "none", description="EAGLE-3: norm of the target's hidden states before they are fused: one for all, or one for each"
    )

    @model_validator(mode="after")
    def _fits(self) -> "DraftConfig":
        if self.vocabulary_size is not None and self.layers is not None and not self.share_vocabulary:
            raise ValueError("draft.vocabulary_size goes with draft.share_vocabulary=true")
        if self.normalise_features and self.standardise_features:
            raise ValueError("draft.normalise_features and draft.standardise_features exclude each other")
        return self


class DataConfig(_Section):
    train: list[str] = Field(
        min_length=1, description="conversations that the target answered: JSONL or Parquet files, hub data sets, or what `pard2 data prepare` wrote"
    )
    evaluation: str | None = Field(None, description="held-out prompts to decode at each evaluation")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="what the chat template gets, such as {enable_thinking: false}, in train and evaluation; a record's own win"
    )
    max_length: PositiveInt = Field(512, description="tokens of a conversation")
    on_long: Literal["raise", "cut", "skip"] = Field("raise", description="what becomes of a conversation with more tokens than max_length")
    row_length: PositiveInt | None = Field(
        None,
        description="tokens of a row, a packed sequence of whole conversations; by default max_length. Changes speed and memory, not the loss",
    )
    expected_tokens: int | None = Field(
        None, ge=1, le=10**9, description="tokens of all conversations; --dry-run plans with it where they are not there yet"
    )

    @model_validator(mode="after")
    def _rows_hold_documents(self) -> "DataConfig":
        if self.row_length is not None and self.row_length < self.max_length:
            raise ValueError(f"data.row_length={self.row_length} is less than data.max_length={self.max_length}")
        return self


class FeaturesConfig(_Section):
    layers: list[int] | None = Field(None, description="hidden states that a new cache holds beside those of this run, for runs of other drafts")
    cache: str | None = Field(None, description="directory that keeps the target's hidden states; by default they are computed anew in each step")
    on_missing: Literal["generate", "skip", "raise"] = Field("generate", description="what becomes of a conversation that the cache lacks")
    on_generate: Literal["keep", "delete"] = Field("keep", description="whether generated states stay on disk, or go once they are used")


class ObjectiveConfig(_Section):
    draft_tokens: int = Field(16, ge=1, le=256, description="K, tokens proposed in one pass")
    weighting: Literal["cat", "none", "d-pace", "overlap"] = Field("cat", description="how much each slot counts; formulas: docs/method.md")
    anchors: Literal["response", "all"] = Field(
        "response", description="where chains begin: inside the answers, or (as published) in the prompt, too"
    )
    retention: Number = Field(0.7, gt=0, le=1, description="COD r: share of the chains kept from one depth to the next")
    min_retention: Number = Field(0.1, ge=0, le=1, description="COD r_min: least share of the chains kept at any depth")
    cod_correction: bool = Field(False, description="weigh each kept slot for those that COD dropped at its depth")
    ce_alpha: Number = Field(0.1, ge=0, description="factor of the cross-entropy against the data token")
    kd_alpha: Number = Field(1.0, ge=0, description="factor of the KL divergence from the target")
    depth_decay: Number = Field(1.0, gt=0, le=1, description="EAGLE-3: each further depth of a chain weighs so much of the one before")
    tf_eal_alpha: Number = Field(0.0, ge=0, description="factor of the added term 1 - R/K, R the teacher-forced expected accepted length")
    tf_eal_warmup_steps: NonNegativeInt = Field(0, description="steps before the added term enters")
    d_pace_floor: Number = Field(0.5, ge=0, le=1, description="c of D-PACE: (1 - c) q + c takes the place of the draft's probability q")
    feature_drop: Number = Field(0.1, ge=0, le=1, description="probability that a conversation is trained without features")


class OptimizerConfig(_Section):
    kind: Literal["adamw", "muon"] = Field("adamw", description="muon: for the matrices of the layers and of the projection; AdamW for all else")
    lr: Number = Field(1e-4, gt=0, description="peak learning rate, of either kind")
    projection_lr_ratio: Number = Field(1.0, gt=0, description="learning rate of the projection of features, as a multiple of `lr`")
    betas: tuple[DecayRate, DecayRate] = Field((0.9, 0.95), strict=False, description="AdamW's decay rates of the gradient's mean and square")
    eps: Number = Field(1e-8, gt=0, description="AdamW's addend to the root of the mean square")
    momentum: DecayRate = Field(0.95, description="Muon's decay rate of the gradient's sum")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="the learning rate's way from its peak to the last step")
    min_lr_ratio: Number = Field(0.1, ge=0, le=1, description="last learning rate as a share of the peak")
    warmup_steps: NonNegativeInt | None = Field(None, description="steps of linear warm-up; by default 20, or all of a shorter run")
    warmup_ratio: Number | None = Field(None, ge=0, le=1, description="share of the run's steps for the warm-up, in place of warmup_steps")
    weight_decay: Number = Field(0.0, ge=0)
    clip: Number | None = Field(1.0, ge=0, description="largest norm of the gradient; null or 0 leaves it as long as it is")
    ema: Number | None = Field(
        None, gt=0, lt=1, description="decay of a running mean of the weights, which is then what is evaluated and saved as draft"
    )

    @model_validator(mode="after")
    def _one_warmup(self) -> "OptimizerConfig":
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError("give either optimizer.warmup_steps or optimizer.warmup_ratio")
        return self

    def warmup(self, steps: int) -> int:
        """Steps of the warm-up in a run of so many."""
        if self.warmup_ratio is not None:
            return round(self.warmup_ratio * steps)
        return min(_WARMUP_STEPS, steps) if self.warmup_steps is None else self.warmup_steps

    def check_warmup(self, steps: int) -> None:
        """Raises `Pard2Error` for a warm-up longer than so many steps: it would never reach its rate."""
        if self.warmup(steps) > steps:
            raise Pard2Error(f"optimizer.warmup_steps={self.warmup_steps} is more than the {steps} steps of the run; lower it")


class LoopConfig(_Section):
    output: str = Field(description="directory of the run: metrics, checkpoints, the finished draft")
    steps: PositiveInt | None = Field(None, description="optimizer steps")
    epochs: Number | None = Field(None, gt=0, description="passes over the data, in place of steps")
    rows_per_step: PositiveInt = Field(8, description="rows in a global batch, over all processes and accumulated passes")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="arithmetic of the draft's passes; its weights and their updates stay float32"
    )
    activation_checkpointing: bool = Field(False, description="recompute the draft's activations in the backward pass: less memory, more time")
    attention: Literal["auto", "blocks", "flex", "dense"] = Field(
        "auto", description="attention over slots: flex on a GPU, blocks on a CPU, dense for the readable form"
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none", description="fsdp: share out the draft's weights and their optimizer's state among the processes"
    )
    seed: int = 0
    save_every: PositiveInt = Field(50, description="steps between checkpoints to resume from")
    keep_last: PositiveInt = Field(1, description="how many of these checkpoints stay on disk")
    evaluate_every: PositiveInt = Field(200, description="steps between evaluations by real decoding")
    evaluation_prompts: PositiveInt = Field(8, description="prompts decoded at each evaluation")
    evaluation_tokens: PositiveInt = Field(64, description="new tokens for each of them")
    evaluation_weights: Literal["auto", "bf16", "int8"] = Field(
        "auto", description="auto: evaluate with the target that trains; the others with a copy in this form, as a CPU would serve it"
    )
    device: str | None = Field(None, description="cpu, cuda, cuda:N; by default the GPU where there is one")

    @model_validator(mode="after")
    def _one_length(self) -> "LoopConfig":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either loop.steps or loop.epochs")
        return self


class LogConfig(_Section):
    tensorboard: bool = Field(False, description="write TensorBoard events beside metrics.jsonl")
    wandb: str | None = Field(None, description="project of Weights & Biases to report to")


class TrainConfig(_Section):
    method: Literal["pard2", "pard", "ar", "eagle3"] = Field(
        "pard2",
        description="pard2: masks and the target's features; pard: masks alone; eagle3: one layer on the target's features, unrolled; "
        "ar: an ordinary small draft, one token a pass",
    )
    target: TargetConfig
    draft: DraftConfig = DraftConfig()
    data: DataConfig
    features: FeaturesConfig = FeaturesConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig
    log: LogConfig = LogConfig()

    @model_validator(mode="before")
    @classmethod
    def _fits_method(cls, document: Any) -> Any:
        return fit_method(document) if isinstance(document, dict) else document

    @model_serializer(mode="wrap")
    def _fields_of_method(self, handler: Any) -> dict[str, Any]:
        return without_unfit(self.method, handler(self))

    @property
    def kind(self) -> TrainingMethod:
        """What the method trains."""
        return METHODS[self.method]

    @property
    def asks_target(self) -> bool:
        """Whether a step needs what the target says: for features, or for its probabilities."""
        objective = self.objective
        return self.kind.features or objective.kd_alpha > 0 or objective.tf_eal_alpha > 0 or objective.weighting in ("cat", "overlap")

    @property
    def shares_tables(self) -> bool:
        """Whether embedding and head stay the target's own; an ordinary LM gets a frozen copy."""
        return self.draft.share_vocabulary and self.kind.masks

    @model_validator(mode="after")
    def _has_origin(self) -> "TrainConfig":
        if self.kind.cut and (self.draft.layers is None) == (self.draft.path is None):
            raise ValueError("give either draft.layers or draft.path")
        return self

    @model_validator(mode="after")
    def _cache_is_read(self) -> "TrainConfig":
        if self.features.cache is not None and not self.asks_target:
            raise ValueError(
                f"features.cache does not fit method={self.method} with this objective, which asks the target nothing; "
                "leave it out, or give objective.kd_alpha"
            )
        if self.features.layers is not None and self.features.cache is None:
            raise ValueError("features.layers is of a cache; give features.cache, too")
        return self

    @model_validator(mode="after")
    def _muon_sees_whole_matrices(self) -> "TrainConfig":
        if self.optimizer.kind == "muon" and self.loop.sharding == "fsdp":
            raise ValueError("optimizer.kind=muon needs whole matrices, and loop.sharding=fsdp shares them out; use optimizer.kind=adamw")
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> "TrainConfig":
        if self.loop.steps is not None:
            self.optimizer.check_warmup(self.loop.steps)
        return self
