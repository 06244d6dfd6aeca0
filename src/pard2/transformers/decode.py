"""What `model.generate` calls in place of its own loop: prompt in, prompt and answer out, by our engine.

    model.generate(**inputs, custom_generate=pard2.transformers.generate, draft="org/draft")

transformers prepares everything as always (settings, processors, criteria) and hands it over; what of it our
engine cannot carry out exactly is refused by name (`request`). The text is that of plain `generate`.
"""

from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor

from pard2.engine.options import DraftTokens, EngineOptions, TreeNodes
from pard2.engine.statistics import Stats, Step
from pard2.hf import PreTrainedModel
from pard2.transformers.caller import dropped_arguments
from pard2.transformers.kept import DraftName, forget, kept_of
from pard2.transformers.request import GenerateRequest, read_request

__all__ = ["forget", "generate"]


def generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    draft: DraftName | None = None,
    method: str | None = None,
    draft_tokens: DraftTokens = "auto",
    tree: TreeNodes = 0,
    **prepared: Any,
) -> Any:
    """Decode one prompt as `generate` would, with the proposals of a draft. Not called
    directly: it is given to `model.generate` as `custom_generate`.

    input_ids: [1, T], the prompt.
    draft: a directory, a hub id, `smollm2`, or a loaded draft; loaded once for a model, and kept with it.
    method, draft_tokens, tree: as for `Engine`; by default the best that the draft allows, and chains.
    prepared: what transformers has made of the other arguments of `generate`.

    Returns [1, T + new] token ids; with `return_dict_in_generate` a `GenerateDecoderOnlyOutput` with these as
    `sequences`, and the `Stats` of the decoding as its attribute `stats`.

    Raises `Pard2Error` by the argument's name for what would make another text than that of plain `generate`.
    """
    prepared = dropped_arguments(model) | prepared  # a transformers that hands them over has the last word
    options = EngineOptions(method=method, draft_tokens=draft_tokens, tree=tree, max_batch=1)
    with kept_of(model) as kept:
        request = read_request(model, input_ids, prepared, kept.target)
        engine = kept.engine(draft, options, input_ids.shape[1] + request.params.max_tokens)
        said = _Said(input_ids, request, prepared.get("streamer"))
        with closing(engine.stream(input_ids[0].tolist(), request.params)) as steps:
            for step in steps:
                if said.take(step):
                    break
    if said.streamer is not None:
        said.streamer.end()
    sequences = torch.cat([input_ids, said.new_tokens[None]], dim=1)
    if not prepared["generation_config"].return_dict_in_generate:
        return sequences
    output = transformers.generation.GenerateDecoderOnlyOutput(sequences=sequences)
    output.stats = Stats.of(said.steps)
    return output


class _Said:
    """The answer as it grows: each token is shown to the stopping criteria and then to the streamer, as
    `generate`'s own loop does it, though several come in one step."""

    def __init__(self, input_ids: Tensor, request: GenerateRequest, streamer: Any) -> None:
        self._input_ids = input_ids
        self._criteria = request.criteria
        self.streamer = streamer  # which has seen the prompt already
        self.tokens: list[int] = []
        self.steps: list[Step] = []

    @property
    def new_tokens(self) -> Tensor:
        """[new], on the device of the prompt."""
        return torch.tensor(self.tokens, dtype=self._input_ids.dtype, device=self._input_ids.device)

    def take(self, step: Step) -> bool:
        """Say a step's tokens up to the first after which a criterion ends the text; True if one does."""
        before, kept, ended = len(self.tokens), 0, False
        self.tokens += step.token_ids
        text = torch.cat([self._input_ids, self.new_tokens[None]], dim=1) if self._criteria else None
        while kept < len(step.token_ids) and not ended:
            kept += 1
            if text is not None:
                ended = bool(self._criteria(text[:, : self._input_ids.shape[1] + before + kept], None).any())
            if self.streamer is not None:
                self.streamer.put(torch.tensor([step.token_ids[kept - 1]], dtype=self._input_ids.dtype))
        del self.tokens[before + kept :]
        if ended and kept <= step.accepted:  # counted as where any other end cuts a block (`Step`)
            step = replace(step, accepted=kept - 1, proposed=kept - 1)
        self.steps.append(replace(step, token_ids=step.token_ids[:kept]))
        return ended
