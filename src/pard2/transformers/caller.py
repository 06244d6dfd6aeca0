"""Arguments of `model.generate` that transformers does not hand on to a `custom_generate`."""

import sys
from typing import Any

from pard2.hf import PreTrainedModel

_DROPPED = ("streamer", "assistant_model", "synced_gpus")


def dropped_arguments(model: PreTrainedModel) -> dict[str, Any]:
    """Those that are not None, read where they still are: in the call of `generate` that is under way.

    transformers (5.23) puts the prompt into a streamer and then forgets it for a function of
    ours: a reader of that streamer would wait for ever. There is no other seam. Empty outside of such a call.
    """
    frame = sys._getframe(1)
    while frame is not None:
        # Whatever class overrides it; between it and us there may be others' wrappers.
        if frame.f_code.co_name == "generate" and frame.f_locals.get("self") is model:
            return {name: frame.f_locals[name] for name in _DROPPED if frame.f_locals.get(name) is not None}
        frame = frame.f_back
    return {}
