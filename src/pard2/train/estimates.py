"""What a run will take, computed from shapes before it starts: slots, memory, floating-point operations.

Letters: h hidden, i intermediate, q and k widths of queries and keys over all heads, V vocabulary, F features of the target; a row of N
tokens has S slots, of which P predict a token. In bytes a number is 4, or 2 in bfloat16. What Python and torch take for themselves is
not in here, nor what several processes or sharding change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import nn

from pard2.config import ObjectiveConfig
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.objective.chunked_loss import CHUNK
from pard2.objective.slot_attention import BLOCK

_LOGIT_COPIES = 5  # of a chunk's rows of V: the teacher's and the draft's, and what lies between them without compiled kernels


@dataclass(frozen=True)
class Shape:
    """What a causal LM costs.

    vocabulary: tokens that its head has logits for. block_weights: numbers in the matrices of all layers; experts count as if all were used.
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
    def of(cls, model: Target | Draft) -> "Shape":
        config = model.config
        heads = config.num_attention_heads
        kv_heads = (config.num_key_value_heads if hasattr(config, "num_key_value_heads") else None) or heads
        head_dim = (config.head_dim if hasattr(config, "head_dim") else None) or config.hidden_size // heads
        lm = model.model if isinstance(model, Target) else model.lm
        blocks = lm.get_submodule(model.blocks_name)
        short = model.short_head if isinstance(model, Draft) else None
        return cls(
            len(blocks),
            config.hidden_size,
            (config.intermediate_size if hasattr(config, "intermediate_size") else None) or 4 * config.hidden_size,
            heads * head_dim,
            kv_heads * head_dim,
            config.vocab_size if short is None else len(short.token_ids),
            sum(p.numel() for p in blocks.parameters() if p.dim() > 1),
            any(name.endswith("q_norm") for name, _ in blocks.named_modules()),
        )


@dataclass(frozen=True)
class RowSize:
    """Expected sizes of a row. document: tokens that a slot's document has on average. anchors: tokens that begin a chain."""

    tokens: float
    slots: float
    predicting: float
    document: float

    @classmethod
    def of(cls, tokens: float, predicted: float, document: float, objective: ObjectiveConfig) -> "RowSize":
        """From N tokens of which `predicted` belong to answers. At depth d, COD keeps max(r^d, r_min) of the chains, or fewer at an answer's end."""
        masks = kept_masks(objective)
        chains = tokens if objective.anchors == "all" else predicted
        return cls(tokens, tokens + chains * masks, predicted * (1 + masks), document)


def kept_masks(objective: ObjectiveConfig) -> float:
    """Masks that COD keeps of a chain, on average: the sum of max(r^d, r_min) over d = 1 .. K-1."""
    return sum(max(objective.retention**depth, objective.min_retention) for depth in range(1, objective.draft_tokens))


@dataclass(frozen=True)
class Memory:
    """Bytes. The first six stay; of the others, a step's three phases, only the largest counts: they come one after another.

    target_weights, draft_weights: as they are held; the draft's in float32. gradients: 4 for each trained number. optimizer: AdamW's two
    means, 8, and Muon's one, 4. average: EMA's, 4. target_states: N (F + h_T), the features and last states of a row.
    target_pass: N (4 h_T + 3 i_T + 2 F), a layer and the features on their way into one tensor, and the logits of a block of CAT's rows.
    draft_pass: activations + loss_chunks + autocast, the draft's weights once more in bfloat16.
    activations: S (6h + 2q + 2k + 4i) for each layer in float32, plus 2q + 2k where heads are normalised; in bfloat16 the residual stream and
    its norms stay float32, 16 h bytes, and 5h + 2q + 2k + 4i are halved. With checkpointing, S h for each layer and one layer whole. And S (F + 2h).
    loss_chunks: 5 x 256 rows of V in float32, and the head's gradient, V h, twice.
    update: the optimizer's intermediate values, 4 for each trained number, on a GPU, where all are updated at once.
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
    """What autograd keeps of the draft's pass over a row's slots. features: F. mixed: bfloat16 arithmetic."""
    products = 2 * shape.queries + 2 * shape.keys + 4 * shape.intermediate
    normed = 2 * (shape.queries + shape.keys) if shape.head_norms else 0
    layer = 16 * shape.hidden + 2 * (5 * shape.hidden + products + normed) if mixed else 4 * (6 * shape.hidden + products + normed)
    kept = shape.layers * 4 * shape.hidden + layer if checkpointing else shape.layers * layer
    # The features of every slot as the target gave them, and once more where the draft computes in another precision.
    wide = features * (target_itemsize + (0 if target_itemsize == (2 if mixed else 4) else 2 if mixed else 4))
    return round(slots * (kept + wide + 8 * shape.hidden))


def step_memory(
    target: Shape,
    draft: Shape,
    row: RowSize,
    numbers: Mapping[str, int],
    features: int,
    target_itemsize: int,
    *,
    head_trained: bool,
    mixed: bool,
    checkpointing: bool,
    average: bool,
    on_gpu: bool,
) -> Memory:
    """numbers: how many `target`, `draft` and `trained` ones there are, and how many of the trained are Muon's, `muon`. row: the fullest.

    head_trained: the draft has a head of its own.
    """
    logits = CHUNK * draft.vocabulary
    head = draft.vocabulary * draft.hidden
    loss = _LOGIT_COPIES * logits * 4 + (2 * head * 4 if head_trained else 0)
    return Memory(
        target_weights=numbers["target"] * target_itemsize,
        draft_weights=numbers["draft"] * 4,
        gradients=numbers["trained"] * 4,
        optimizer=numbers["trained"] * 8 - numbers["muon"] * 4,
        average=numbers["trained"] * 4 if average else 0,
        target_states=round(row.tokens * (features + target.hidden) * target_itemsize),
        target_pass=round(row.tokens * (4 * target.hidden + 3 * target.intermediate + 2 * features) * target_itemsize) + 3 * logits * 4,
        activations=activation_bytes(draft, row.slots, features, target_itemsize, mixed, checkpointing),
        loss_chunks=loss + (2 * logits * 2 + 2 * head if mixed else 0),
        autocast=2 * (draft.block_weights + features * draft.hidden) if mixed else 0,
        update=numbers["trained"] * 4 if on_gpu else 0,
    )


def row_flops(
    target: Shape, draft: Shape, row: RowSize, predicted: float, features: int, *, head_trained: bool, checkpointing: bool
) -> dict[str, float]:
    """Floating-point operations of a row, two for each multiplication: in the target, the draft's layers, and the loss. predicted: answer tokens.

    A pass is 2 for each number of a matrix and token, and 4 q for each pair of a query and a key that it sees; a backward pass is two of them, makes
    the scores anew, and checkpointing adds a whole pass. Slots are taken in blocks, which look at as many masks beside their documents. The
    head: forward and gradient of the states (and of itself, if it is trained) for P slots; the target's for each answer token, and again for CAT.
    """
    seen = row.document / 2
    passes = 4 if checkpointing else 3
    layers = 2 * passes * draft.block_weights + 4 * (passes + 0.5) * draft.queries * draft.layers * (seen + BLOCK)
    return {
        "target": row.tokens * (2 * target.block_weights + 4 * target.queries * target.layers * seen),
        "draft": row.slots * (layers + 4 * features * draft.hidden),
        "loss": 2 * draft.vocabulary * (draft.hidden * row.predicting * (3 if head_trained else 2) + 2 * target.hidden * predicted),
    }


def count(module: nn.Module, trained_only: bool = False) -> int:
    """Numbers in a module's parameters, each once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained_only)
