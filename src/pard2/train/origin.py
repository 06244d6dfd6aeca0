"""What a run is trained with, as hashes: it is never resumed with something else under the same names."""

import hashlib
import json

from pydantic import BaseModel, ConfigDict

from pard2.config import TrainConfig
from pard2.data.corpus import Examples
from pard2.data.fingerprint import template_hash
from pard2.models.identity import weights_hash
from pard2.models.target import Target


class Origin(BaseModel):
    """SHA-256 hashes.

    target: of its config and some values of each weight.
    template: of the chat template.
    data: of token ids and masks of all examples in their order, which depend on the template, too.
    evaluation: of the token ids of the held-out prompts, None without any.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    target: str
    template: str
    data: str
    evaluation: str | None = None

    @classmethod
    def of(cls, target: Target, examples: Examples, held_out: list[list[int]]) -> "Origin":
        data = hashlib.sha256()
        for array in (examples.tokens, examples.predicted, examples.offsets):
            data.update(array.tobytes())
        evaluation = hashlib.sha256(json.dumps(held_out).encode()).hexdigest() if held_out else None
        return cls(target=weights_hash(target.model), template=template_hash(target.tokenizer), data=data.hexdigest(), evaluation=evaluation)

    def difference(self, now: "Origin", config: TrainConfig) -> str | None:
        """What is not as it was, in words that name its field; None where all is, or where nobody knows."""
        if self.target != now.target:
            return f"other models under the same names: the weights of target.name={config.target.name} are not those that it began with"
        if self.data != now.data:
            template = "the target's chat template" if self.template != now.template else ""
            cache = ", or features.cache holds others of them (features.on_missing=skip)" if config.features.on_missing == "skip" else ""
            return f"other data: {template or f'the conversations of data.train={config.data.train}'} changed{cache}"
        if self.evaluation is not None and self.evaluation != now.evaluation:
            return f"other held-out prompts: data.evaluation={config.data.evaluation} changed, and `best` would compare what cannot be compared"
        return None
