"""What a drafter proposes for one sequence in a cycle: a tree of guesses, of which
a chain is the plain case."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

NOTHING = -1  # what a draft proposes by logits that are no numbers; no token has this id, so none agrees with it


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The nodes of a tree below the newest token of the text, each a guess at the
    token that follows its parent.

    token_ids: [k] of the nodes, in the target's vocabulary, or NOTHING; k may be 0.
    parents: for each node the index of its parent, an earlier node, or -1 for a child of the newest token;
        None for a chain, where each node's parent is the one before.
    q: [k, vocabulary], what a chain's guesses were drawn from; None where they are the most probable ones.
    probabilities: of a tree, for each node the draft's probability of the path to it; never rising.
    """

    token_ids: Tensor
    parents: tuple[int, ...] | None = None
    q: Tensor | None = None
    probabilities: tuple[float, ...] = ()

    @cached_property
    def num_nodes(self) -> int:
        """k."""
        return len(self.token_ids)

    @property
    def span_parents(self) -> tuple[int, ...] | None:
        """Parents among [newest token, node 0, node 1, ..], as a `QuerySpan` wants them; None for a chain."""
        return None if self.parents is None else (-1, *(parent + 1 for parent in self.parents))

    @cached_property
    def depths(self) -> list[int]:
        """Of the newest token, 0, and of each node: how many tokens it stands
        behind the newest one; [k + 1]."""
        if self.parents is None:
            return list(range(self.num_nodes + 1))
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent + 1] + 1)
        return depths

    def ancestors(self, device: torch.device) -> Tensor | None:
        """[k + 1, k] bool of a tree: row 0 is the newest token's, row i + 1 holds node i's
        ancestors and node i itself.

        None for a chain, where row i holds the first i nodes.
        """
        if self.parents is None:
            return None
        seen = np.zeros((self.num_nodes + 1, self.num_nodes), bool)
        for node, parent in enumerate(self.parents):
            seen[node + 1] = seen[parent + 1]
            seen[node + 1, node] = True
        return torch.from_numpy(seen).to(device)

    def first(self, nodes: int) -> "Proposal":
        """Its first nodes alone, which are a tree too: parents come before their children."""
        parents = None if self.parents is None else self.parents[:nodes]
        q = None if self.q is None else self.q[:nodes]
        return Proposal(token_ids=self.token_ids[:nodes], parents=parents, q=q, probabilities=self.probabilities[:nodes])
