"""What runs a token batch through a causal LM."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pard2.runtime.token_batch import TokenBatch


@dataclass(frozen=True)
class DecoderOutput:
    """What one pass over N tokens gives.

    logits: [R, vocabulary], of the rows asked for; None where none were.
    features: [N, len(layers) * hidden]; None without layers.
    """

    logits: Tensor | None
    features: Tensor | None


class Decoder(Protocol):
    """A causal LM's forward pass over the new tokens of several sequences at once."""

    def run(self, batch: TokenBatch, embeddings: Tensor | None, logit_rows: Tensor | None, layers: tuple[int, ...] = ()) -> DecoderOutput:
        """Run the N tokens of a batch.

        embeddings: [N, hidden], read in place of what the model embeds `batch.token_ids` as; None for that.
        logit_rows: [R] numbers of the tokens whose logits are wanted; None for none.
        layers: hidden states wanted as features, numbered as in `RecordedStates`.
        """
        ...
