"""What a draft is trained for, by which the methods that it can carry out are known. It imports no torch."""

from enum import IntEnum


class DraftKind(IntEnum):
    """Each kind can do what the kinds before it can, but for EAGLE-3, which is a kind of its own.

    NONE: there is no draft.
    LM: an ordinary language model, one token a pass.
    MASKED: has a mask token, so that it proposes several tokens in a pass (PARD).
    LAYERED: names the target's hidden states that feed it (PARD-2), but has no projection to take them in.
    PROJECTED: has the projection, too.
    EAGLE3: one layer on the target's features (EAGLE-3).
    """

    NONE = 0
    LM = 1
    MASKED = 2
    LAYERED = 3
    PROJECTED = 4
    EAGLE3 = 5

    def can(self, needed: "DraftKind") -> bool:
        """Whether a draft of this kind can do what one of the needed kind can."""
        if DraftKind.EAGLE3 in (self, needed):
            return needed in (self, DraftKind.NONE)
        return needed <= self
