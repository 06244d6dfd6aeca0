"""The draft: a small causal LM that proposes K tokens in one pass, with or without the target's features.

It knows what the input of one token is (METHOD: section 2) and nothing about decoding or training.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pard2.errors import Pard2Error
from pard2.hf import PreTrainedModel, Tokenizer
from pard2.kernels.half_embedding import HalfEmbedding
from pard2.kernels.weight_format import WeightFormat, convert_linears
from pard2.models.decodable import Decodable
from pard2.models.draft_kind import DraftKind
from pard2.models.short_head import ShortHead
from pard2.runtime.decoder import Decoder
from pard2.runtime.hidden_states import HiddenStateRecorder, decoder_blocks
from pard2.runtime.support import context_limit, new_decoder
from pard2.runtime.token_batch import TokenBatch

DEFAULT_TARGET_LAYERS = (-1, -8, -16, -24)
DEFAULT_SCALE = 0.02
_EPSILON = 1e-6  # of a mean square; the zero feature stays zero


@dataclass(frozen=True, kw_only=True)
class DraftSpec:
    """What a draft's config says beside the LM itself (METHOD: section 7).

    mask_token: id of the token that stands for one to be proposed.
    draft_tokens: K, the most tokens that it was trained to propose in one pass.
    target_layers: which hidden states of the target feed the projection; None
        without a target-dependent mode.
    target_dim: their joint width.
    scale: the factor of a projected feature.
    bias: whether the projection has one.
    shared_vocabulary: the checkpoint holds neither embedding nor head; both are the target's, but
        for the mask token's embedding.
    normalise_features: each hidden state of a feature is divided by its root mean
        square before it is projected.
    mask_feature: mask tokens get one learned vector where others get their anchor's projected feature.
    vocabulary_size: D, how many tokens of its target's vocabulary it can propose; None for all.
    made_for: the target that its features come from (`identity.identity_keys`); None where it is not known.
    template_arguments: the different `chat_template_kwargs` of its training data;
        None where they are not known.
    """

    mask_token: int
    draft_tokens: int
    target_layers: tuple[int, ...] | None = None
    target_dim: int | None = None
    scale: float = DEFAULT_SCALE
    bias: bool = False
    shared_vocabulary: bool = False
    normalise_features: bool = False
    mask_feature: bool = False
    vocabulary_size: int | None = None
    made_for: dict[str, str] | None = field(default=None, compare=False)
    template_arguments: list[dict[str, Any]] | None = None


# An ordinary LM seen as such a draft: one token a pass, and no slot of it holds the mask token.
ONE_A_PASS = DraftSpec(mask_token=0, draft_tokens=1)


class Projection(Protocol):
    """What turns features into embeddings: an `nn.Linear`, or what behaves like
    one with this weight and bias.

    weight: [hidden, target_dim].
    bias: [hidden] or None.
    """

    @property
    def weight(self) -> Tensor: ...

    @property
    def bias(self) -> Tensor | None: ...

    def __call__(self, features: Tensor, /) -> Tensor: ...


class SharedEmbedding(nn.Module):
    """The target's embedding table, but for the mask token's row, which is the draft's
    own: `mask_row` [hidden]."""

    table: nn.Embedding | HalfEmbedding

    def __init__(self, table: nn.Embedding | HalfEmbedding, mask_token: int, mask_row: Tensor) -> None:
        super().__init__()
        self.__dict__["table"] = table  # belongs to the target: neither moved, nor saved, nor trained with the draft
        self.mask_token = mask_token
        self.mask_row = nn.Parameter(mask_row.detach().clone())

    @property
    def weight(self) -> Tensor:
        """[vocabulary, hidden], materialised."""
        weight = self.table.weight.detach().clone()
        weight[self.mask_token] = self.mask_row.detach().to(weight.dtype)
        return weight

    def forward(self, token_ids: Tensor) -> Tensor:
        embeddings = self.table(token_ids)
        return torch.where((token_ids == self.mask_token)[..., None], self.mask_row.to(embeddings.dtype), embeddings)


@torch.no_grad()
def neutral_row(table: Tensor) -> Tensor:
    """[hidden] row for a new mask token: the direction of the table's mean at the length of a typical row.

    The mean itself is nearly zero; the first norm would blow it up, and its gradient with it.
    """
    mean = table.float().mean(0)
    return (mean * (table.float().norm(dim=-1).median() / mean.norm())).to(table.dtype)


class Draft(Decodable, nn.Module):
    """A causal LM, and the projection of the target's features into its embedding space.

    `spec` None makes it an ordinary small LM, which can only draft one token at a time.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        spec: DraftSpec | None,
        projection: "Projection | None" = None,
        tokenizer: Tokenizer | None = None,
        name: str = "draft",
        mask_feature: Tensor | None = None,
    ) -> None:
        """mask_feature: [hidden], for a draft that has a projection and whose spec
        says so, and for no other."""
        super().__init__()
        if (mask_feature is not None) != (spec is not None and spec.mask_feature and projection is not None):
            raise ValueError("a draft has a learned mask feature if its spec says so and it has a projection")
        self.lm = lm
        self.spec = spec
        self.projection = projection
        self.mask_feature = None if mask_feature is None else nn.Parameter(mask_feature.detach().clone())
        self.tokenizer = tokenizer
        self.name = name
        self._weight_format: WeightFormat = "plain"

    @property
    def causal_lm(self) -> PreTrainedModel:
        return self.lm

    @property
    def config(self):
        return self.lm.config.get_text_config()

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def num_layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def blocks(self) -> nn.ModuleList:
        return decoder_blocks(self.lm)[1]

    @property
    def context_length(self) -> int:
        return context_limit(self.config)

    @property
    def decoder_dtype(self) -> torch.dtype:
        """Of activations, and so of the cache."""
        return self.lm.dtype

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """The weights of embedding and head, [vocabulary, hidden] each."""
        return self.lm.get_input_embeddings().weight, self.lm.get_output_embeddings().weight

    @property
    def head_weight(self) -> Tensor:
        """[D, hidden], the rows of the tokens that it can propose."""
        return self.lm.get_output_embeddings().weight

    @property
    def short_head(self) -> ShortHead | None:
        """Its head, if it can propose a part of the vocabulary alone."""
        head = self.lm.get_output_embeddings()
        return head if isinstance(head, ShortHead) else None

    def share_vocabulary(self, embedding: nn.Module, head: nn.Module, mask_row: Tensor | None = None, token_ids: Tensor | None = None) -> None:
        """Use the target's embedding and head; only the mask token's row stays the draft's own.

        mask_row: [hidden], the mask token's embedding; by default `neutral_row` of the table.
        token_ids: [D], the only ones that it shall propose; by default all.

        Raises `Pard2Error` for a target that scales its embeddings: the mask token's would not be scaled.
        """
        if type(embedding) is not nn.Embedding and not isinstance(embedding, HalfEmbedding):
            raise Pard2Error(f"a draft cannot share a {type(embedding).__name__}; give it a vocabulary of its own (draft.share_vocabulary=false)")
        row = neutral_row(embedding.weight) if mask_row is None else mask_row
        self.lm.set_input_embeddings(SharedEmbedding(embedding, self.spec.mask_token, row))
        self.lm.set_output_embeddings(_Borrowed(head) if token_ids is None else ShortHead(head, token_ids, self.lm.dtype))
        self.lm.config.tie_word_embeddings = False

    def propose_from(self, token_ids: Tensor) -> None:
        """Propose only these tokens [D] from now on; for a draft with a `short_head`.

        The head's rows are the target's, so nothing that was learned is lost.
        """
        short = self.short_head
        assert short is not None, "a head for all tokens has weights of its own"
        self.lm.set_output_embeddings(ShortHead(short.whole, token_ids, self.lm.dtype))
        self.spec = dataclasses.replace(self.spec, vocabulary_size=len(token_ids))

    def embed(self, token_ids: Tensor, features: Tensor | None, with_features: Tensor | None = None) -> Tensor:
        """Embeddings [B, S, hidden] that the LM reads: `embed(token) + scale * W f`.

        token_ids: [B, S].
        features: [B, S, target_dim], f of each token: f[t-1] for a real token at position t, the anchor's for
            its mask tokens. None in target-independent mode.
        with_features: [B, S] bool, False for tokens that are to be read as in target-independent mode, bit
            for bit. None: True for all.
        """
        embeddings = self.lm.get_input_embeddings()(token_ids)
        if self._weight_format != "plain":
            embeddings = embeddings.float()  # the table may be that of a target whose own layers are plain
        if features is None:
            return embeddings
        if self.projection is None:
            raise Pard2Error(f"draft {self.name!r} has no projection; use it target-independent (`method` pard2-ti)")
        if self.spec.normalise_features:
            features = normalised(features, len(self.spec.target_layers))
        projected = self.projection(features.to(embeddings.dtype)).to(embeddings.dtype)
        if self.mask_feature is not None:
            projected = torch.where((token_ids == self.spec.mask_token)[..., None], self.mask_feature.to(embeddings.dtype), projected)
        sums = embeddings + self.spec.scale * projected
        return sums if with_features is None else torch.where(with_features[..., None], sums, embeddings)

    def forward(self, token_ids: Tensor, features: Tensor | None, num_logits: int = 0) -> Tensor:
        """Logits [B, num_logits or S, vocabulary] of the last `num_logits` tokens (0: of
        all), by the LM's own code."""
        return self.lm(inputs_embeds=self.embed(token_ids, features), use_cache=False, logits_to_keep=num_logits).logits

    @property
    def kind(self) -> DraftKind:
        """What it can do, by what it has."""
        if self.spec is None:
            return DraftKind.LM
        if self.projection is not None:
            return DraftKind.PROJECTED
        return DraftKind.MASKED if self.spec.target_layers is None else DraftKind.LAYERED

    def new_decoder(self) -> Decoder:
        return new_decoder(self.lm, self.name, HiddenStateRecorder(self.lm), self._weight_format)

    def convert(self, weight_format: WeightFormat) -> None:
        """Bring the linear layers of a plain draft into this format: it can then be
        neither trained nor saved."""
        if weight_format == "plain":
            return
        self._weight_format = weight_format
        _ = self.decoder  # made of plain layers, which it fuses
        convert_linears(self, weight_format)
        if self.short_head is not None:
            self.short_head.convert(weight_format)

    @torch.no_grad()
    def run(self, batch: TokenBatch, features: Tensor | None, logit_rows: Tensor | None) -> Tensor | None:
        """Run the new tokens of several sequences: logits [R, vocabulary] of those
        asked for, None where none were.

        batch: N tokens.
        features: [N, target_dim] as for `embed`, or None.
        logit_rows: [R] numbers of the tokens whose logits are wanted; None for none.
        """
        return self.decoder.run(batch, self.embed(batch.token_ids, features), logit_rows).logits

    def states(
        self, token_ids: Tensor, features: Tensor | None, attention_mask: Tensor, position_ids: Tensor, with_features: Tensor | None = None
    ) -> Tensor:
        """Final states [B, S, hidden], before the head, for training.

        attention_mask: [B, 1, S, S], True where query i may see key j at [.., i, j].
        position_ids: [B, S].
        The other arguments: as for `embed`.
        """
        return self.lm.base_model(
            inputs_embeds=self.embed(token_ids, features, with_features),
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state


def normalised(features: Tensor, layers: int) -> Tensor:
    """Features [..., F] with each of their `layers` hidden states divided by its root mean square."""
    states = features.float().unflatten(-1, (layers, -1))
    return (states * torch.rsqrt(states.square().mean(-1, keepdim=True) + _EPSILON)).flatten(-2)


class _Borrowed(nn.Module):
    """Another model's module, used but not owned: it is not moved, saved or trained
    with the one that uses it."""

    module: nn.Module

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.__dict__["module"] = module

    @property
    def weight(self) -> Tensor:
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.module, nn.Linear):  # a draft in training is float32, its target need not be
            x = x.to(self.module.weight.dtype)
        return self.module(x)
