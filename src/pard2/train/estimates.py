"""What a run will take, computed from shapes before it starts: slots, memory, floating-point operations.

Letters: h hidden, i intermediate, q and k widths of queries and keys over all heads, V vocabulary, F features
of the target; a packed sequence of N tokens has S slots, of which P predict a token. A number takes 4 bytes,
or 2 in bfloat16. What Python and torch take for themselves is not in here, nor what several processes or
sharding change.
"""

from dataclasses import dataclass, fields

from torch import nn

from pard2.config import ObjectiveConfig
from pard2.models.any_draft import AnyDraft
from pard2.models.draft import Draft
from pard2.models.eagle3 import Eagle3Draft
from pard2.models.target import Target
from pard2.objective.chunked_loss import CHUNK
from pard2.objective.slot_attention import BLOCK

_LOGIT_COPIES = 5  # of a chunk's rows of V: the teacher's and the draft's, and what lies between them without compiled kernels


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a causal LM costs.

    queries, keys: widths over all heads.
    vocabulary: tokens that its head has logits for.
    block_weights: numbers in the matrices of all layers; experts count as if all were used.
    head_norms: each head's queries and keys are normalised, as in Qwen 3.
    """

    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    vocabulary: int
    block_weights: int
    head_norms: bool

    @classmethod
    def of(cls, model: Target | AnyDraft) -> "Shape":
        config = model.config
        heads = config.num_attention_heads
        kv_heads = (config.num_key_value_heads if hasattr(config, "num_key_value_heads") else None) or heads
        head_dim = (config.head_dim if hasattr(config, "head_dim") else None) or config.hidden_size // heads
        blocks = model.blocks
        short = model.short_head if isinstance(model, Draft) else None
        proposed = len(model.token_ids) if isinstance(model, Eagle3Draft) else config.vocab_size if short is None else len(short.token_ids)
        return cls(
            layers=len(blocks),
            hidden=config.hidden_size,
            intermediate=(config.intermediate_size if hasattr(config, "intermediate_size") else None) or 4 * config.hidden_size,
            queries=heads * head_dim,
            keys=kv_heads * head_dim,
            vocabulary=proposed,
            block_weights=sum(p.numel() for p in blocks.parameters() if p.dim() > 1),
            head_norms=any(name.endswith("q_norm") for name, _ in blocks.named_modules()),
        )


@dataclass(frozen=True)
class Parameters:
    """Numbers in the models' weights.

    trained: of the draft.
    projection: of `trained`, those of the projection of features.
    frozen: of the draft; what it borrows is the target's.
    muon: of `trained`, those that Muon updates.
    """

    target: int
    trained: int
    projection: int
    frozen: int
    muon: int


@dataclass(frozen=True)
class SequenceSize:
    """Expected sizes of a packed sequence.

    tokens: N.
    slots: S.
    predicting: P.
    document: tokens that a slot's document has on average.
    """

    tokens: float
    slots: float
    predicting: float
    document: float

    @classmethod
    def of(cls, tokens: float, predicted: float, document: float, objective: ObjectiveConfig) -> "SequenceSize":
        """From N tokens of which `predicted` belong to answers.

        At depth d, COD keeps max(r^d, r_min) of the chains, or fewer at an answer's end.
        """
        masks = kept_masks(objective)
        chains = tokens if objective.anchors == "all" else predicted
        return cls(tokens, tokens + chains * masks, predicted * (1 + masks), document)


def kept_masks(objective: ObjectiveConfig) -> float:
    """Masks that COD keeps of a chain, on average: the sum of max(r^d, r_min) over d = 1 .. K-1."""
    return sum(max(objective.retention**depth, objective.min_retention) for depth in range(1, objective.draft_tokens))


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a training process on its device.

    The first six stay. Of the others, which are a step's three phases, only the largest counts: they come one
    after another.

    target_weights, draft_weights: as they are held; the draft's in float32.
    gradients: 4 for each trained number.
    optimizer: AdamW's two means, 8, and Muon's one, 4.
    average: EMA's, 4.
    target_states: N (F + h_T), the features and last states of a packed sequence.
    target_pass: N (4 h_T + 3 i_T + 2 F), a layer and the features on their way into one tensor, and the
        logits of a block of CAT's positions.
    draft_pass: activations + loss_chunks + autocast, the draft's weights once more in bfloat16.
    activations: S (6h + 2q + 2k + 4i) for each layer in float32, plus 2q + 2k where heads are normalised; in
        bfloat16 the residual stream and its norms stay float32, 16 h bytes, and 5h + 2q + 2k + 4i are halved.
        With checkpointing, S h for each layer and one layer whole. And S (F + 2h).
    loss_chunks: 5 x 256 rows of V in float32, and the head's gradient, V h, twice.
    update: the optimizer's intermediate values, 4 for each trained number, on a GPU, where all are updated at
        once.
    """

    target_weights: int
    draft_weights: int
    gradients: int
    optimizer: int
    average: int
    target_states: int
    target_pass: int
    activations: int
    loss_chunks: int
    autocast: int
    update: int

    @property
    def draft_pass(self) -> int:
        return self.activations + self.loss_chunks + self.autocast

    @property
    def total(self) -> int:
        resident = self.target_weights + self.draft_weights + self.gradients + self.optimizer + self.average + self.target_states
        return resident + max(self.target_pass, self.draft_pass, self.update)

    def as_dict(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"total": self.total}


def activation_bytes(shape: Shape, slots: float, features: int, target_itemsize: int, mixed: bool, checkpointing: bool) -> int:
    """Bytes that autograd keeps of the draft's pass over a packed sequence's slots.

    features: F.
    target_itemsize: bytes of a number of the features.
    mixed: bfloat16 arithmetic.
    """
    products = 2 * shape.queries + 2 * shape.keys + 4 * shape.intermediate
    normed = 2 * (shape.queries + shape.keys) if shape.head_norms else 0
    layer = 16 * shape.hidden + 2 * (5 * shape.hidden + products + normed) if mixed else 4 * (6 * shape.hidden + products + normed)
    kept = shape.layers * 4 * shape.hidden + layer if checkpointing else shape.layers * layer
    # The features of every slot as the target gave them, and once more in the draft's precision.
    wide = features * (target_itemsize + (0 if target_itemsize == (2 if mixed else 4) else 2 if mixed else 4))
    return round(slots * (kept + wide + 8 * shape.hidden))


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What a step's memory depends on beside shapes.

    target_itemsize: bytes of a number of the target's weights and states.
    head_trained: the draft has a head of its own.
    mixed: the draft computes in bfloat16.
    checkpointing: activations are recomputed in the backward pass.
    average: a running mean of the weights is kept.
    on_gpu: the device is one.
    target_asked: the target runs over the conversations; else it only takes its place.
    features_once: the draft takes in a token's features once, and not at each slot.
    """

    target_itemsize: int
    head_trained: bool
    mixed: bool
    checkpointing: bool
    average: bool
    on_gpu: bool
    target_asked: bool = True
    features_once: bool = False


def step_memory(target: Shape, draft: Shape, size: SequenceSize, numbers: Parameters, features: int, options: StepOptions) -> Memory:
    """size: of the fullest packed sequence. features: F."""
    logits = CHUNK * draft.vocabulary
    head = draft.vocabulary * draft.hidden
    loss = _LOGIT_COPIES * logits * 4 + (2 * head * 4 if options.head_trained else 0)
    itemsize, mixed, asked = options.target_itemsize, options.mixed, options.target_asked
    read = size.tokens / size.slots if options.features_once else 1.0
    return Memory(
        target_weights=numbers.target * itemsize,
        draft_weights=(numbers.trained + numbers.frozen) * 4,
        gradients=numbers.trained * 4,
        optimizer=numbers.trained * 8 - numbers.muon * 4,
        average=numbers.trained * 4 if options.average else 0,
        target_states=asked * round(size.tokens * (features + target.hidden) * itemsize),
        target_pass=asked * (round(size.tokens * (4 * target.hidden + 3 * target.intermediate + 2 * features) * itemsize) + 3 * logits * 4),
        activations=activation_bytes(draft, size.slots, round(features * read), itemsize, mixed, options.checkpointing),
        loss_chunks=loss + (2 * logits * 2 + 2 * head if mixed else 0),
        autocast=2 * (draft.block_weights + features * draft.hidden) if mixed else 0,
        update=numbers.trained * 4 if options.on_gpu else 0,
    )


def sequence_flops(target: Shape, draft: Shape, size: SequenceSize, predicted: float, features: int, options: StepOptions) -> dict[str, float]:
    """Floating-point operations of a packed sequence: in the target, in the draft's layers, and in the loss.

    A multiplication counts as two. A pass is 2 for each number of a matrix and token, and 4 q for each pair
    of a query and a key that it sees. A backward pass is two of them and computes the scores again;
    checkpointing adds a whole pass. Slots are taken in blocks, which look at as many masks beside their
    documents. The head: forward and gradient of the states (and of itself, if it is trained) for P slots; the
    target's for each answer token, and again for CAT; for EAGLE-3 once over all its tokens, to choose.

    predicted: answer tokens.
    features: F.
    """
    seen = size.document / 2
    passes, asked = 4 if options.checkpointing else 3, options.target_asked
    layers = 2 * passes * draft.block_weights + 4 * (passes + 0.5) * draft.queries * draft.layers * (seen + BLOCK)
    chosen = 2 * target.vocabulary * target.hidden * predicted if options.features_once else 0.0
    return {
        "target": asked * size.tokens * (2 * target.block_weights + 4 * target.queries * target.layers * seen),
        "draft": size.slots * layers + (size.tokens if options.features_once else size.slots) * 4 * features * draft.hidden,
        "loss": 2 * draft.vocabulary * (draft.hidden * size.predicting * (3 if options.head_trained else 2) + asked * 2 * target.hidden * predicted)
        + chosen,
    }


def count(module: nn.Module, trained_only: bool = False) -> int:
    """Numbers in a module's parameters, each once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained_only)
