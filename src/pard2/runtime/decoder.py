"""What runs a ragged batch through a causal LM."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pard2.runtime.token_batch import TokenBatch


@dataclass(frozen=True)
class DecoderOutput:
    """One pass over N rows.

    logits: [rows asked for, vocabulary], None where none were. features: [N, len(layers) * hidden], None without layers.
    """

    logits: Tensor | None
    features: Tensor | None


class Decoder(Protocol):
    """A causal LM's forward pass over the rows of several sequences at once."""

    def run(
        self, batch: TokenBatch, token_ids: Tensor | None, embeddings: Tensor | None, logit_rows: Tensor | None, layers: tuple[int, ...] = ()
    ) -> DecoderOutput:
        """Run N rows, given as token_ids [N] or, where those are None, as embeddings [N, hidden].

        logit_rows: [R] numbers of the rows whose logits are wanted; None for none. layers: hidden states wanted as features,
        numbered as in `RecordedStates`.
        """
        ...
