"""What a draft is trained for, by which the methods that it can carry out are known. It imports no torch."""

from enum import IntEnum


class DraftKind(IntEnum):
    """Each kind can do what the kinds before it can.

    NONE: there is no draft.
    LM: an ordinary language model, one token a pass.
    MASKED: has a mask token, so that it proposes several tokens in a pass (PARD).
    LAYERED: names the target's hidden states that feed it (PARD-2), but has no projection to take them in.
    PROJECTED: has the projection, too.
    """

    NONE = 0
    LM = 1
    MASKED = 2
    LAYERED = 3
    PROJECTED = 4
