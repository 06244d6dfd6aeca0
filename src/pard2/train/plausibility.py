"""Figures that are too good to be true, told before days are spent on them.

A mask that lets a slot see what it predicts, or features shifted the wrong way, give a very good training
accuracy and a draft whose proposals are hardly ever accepted. Conversations memorised look the same
from here.
"""

from itertools import accumulate
from operator import mul
from typing import Any

_FIRST = 0.97  # accuracy at depth 0 that no draft has on text it has not seen
_FLAT = 0.95  # least share of the first depth's accuracy at the last, where nothing is lost on the way
_GOOD = 0.6  # accuracy below which nothing is too good
_FEW_DEPTHS = 4  # so few may be equally easy
_PROMISED = 1.0  # accepted tokens a cycle that a forecast must promise before decoding can fall short of it
_KEPT = 0.5  # share of them that decoding must keep

_COMPARE = "compare a few steps with loop.attention=dense in another loop.output"


def implausible(accuracy_by_depth: list[float], evaluation: list[dict[str, Any]] | None = None) -> str | None:
    """One line on what is wrong and what to check, or None.

    accuracy_by_depth: [K], teacher-forced, depth 0 first.
    evaluation: results with `method` and `acceptance_length`, the first of which is compared with the
        forecast 1 + sum of the accuracies' prefix products. For honest drafts the two differ by a third or
        so, either way.
    """
    first, last = accuracy_by_depth[0], accuracy_by_depth[-1]
    promised = sum(accumulate(accuracy_by_depth, mul))
    if evaluation and promised >= _PROMISED and evaluation[0]["acceptance_length"] - 1 < _KEPT * promised:
        return (
            f"accuracy in training promises an acceptance length of {1 + promised:.1f}, decoding held-out prompts gives "
            f"{evaluation[0]['acceptance_length']:.1f} ({evaluation[0]['method']}): either the training conversations are memorised or were "
            f"not answered by this target in this template (`pard2 data preview`), or training sees what decoding does not; {_COMPARE}"
        )
    if first > _FIRST:
        return (
            f"accuracy at depth 0 is {first:.0%}: either the conversations are memorised (too few of them, too many epochs), "
            f"or slots see the tokens that they predict; evaluate on held-out prompts (data.evaluation), and {_COMPARE}"
        )
    if len(accuracy_by_depth) >= _FEW_DEPTHS and first > _GOOD and last > _FLAT * first:
        return (
            f"accuracy does not fall with depth ({first:.0%} at depth 0, {last:.0%} at depth {len(accuracy_by_depth) - 1}): "
            f"masks may see the tokens that they predict; {_COMPARE}"
        )
    return None
