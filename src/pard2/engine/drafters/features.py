"""What drafters share that read the target's features: each token comes with the feature of the one before
it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pard2.engine.draft_state import DraftState
from pard2.engine.drafters.model import ModelDrafter


class FeatureDrafter(ModelDrafter):
    """Tokens and features that a draft has yet to read.

    feature_layers: the target's hidden states that it reads; none for a draft without features.
    """

    feature_layers: tuple[int, ...] = ()

    def update(self, state: DraftState, token_ids: Sequence[int], features: Tensor | None, rows: Sequence[int] | None = None) -> None:
        # In the wrong mode everything would still run, and merely accept less.
        if (features is None) == bool(self.feature_layers):
            raise ValueError("features belong to target-dependent drafting, and to it alone")
        if self._put_off(state, token_ids) and features is not None:
            if state.features:  # which were not read since: their rows alone are kept
                matrix, kept = state.features[-1]
                state.features[-1] = matrix[list(kept)], range(len(kept))
            state.features.append((features, range(len(token_ids)) if rows is None else rows))

    @staticmethod
    def _gathered(chunks: Sequence[tuple[Tensor, Sequence[int]]]) -> Tensor:
        """These rows of these matrices, one after the other: by one operation where all are of one matrix."""
        starts: dict[int, int] = {}
        matrices: list[Tensor] = []
        places: list[int] = []
        end = 0
        for matrix, rows in chunks:
            start = starts.setdefault(id(matrix), end)
            if start == end:
                matrices.append(matrix)
                end += len(matrix)
            places += [start + row for row in rows]
        together = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
        return together[torch.tensor(places, device=together.device)]
