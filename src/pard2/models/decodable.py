"""What a target and an ordinary draft share as models that decode: a decoder, graphs of its passes, and the
hub's commit."""

from functools import cached_property

import torch

from pard2.hf import PreTrainedModel
from pard2.runtime.decoder import Decoder
from pard2.runtime.support import can_capture, graphed


class Decodable:
    """A causal LM under a name, and the decoder that runs it."""

    name: str

    @property
    def causal_lm(self) -> PreTrainedModel:
        raise NotImplementedError

    def new_decoder(self) -> Decoder:
        raise NotImplementedError

    @cached_property
    def decoder(self) -> Decoder:
        """What runs ragged batches; made when the model is where and of the dtype that it shall decode in.

        Raises `Pard2Error` for an architecture that cannot be batched.
        """
        return self.new_decoder()

    @property
    def device(self) -> torch.device:
        return self.causal_lm.device

    @property
    def commit(self) -> str | None:
        """The commit that the hub gave; None where it comes from elsewhere."""
        return getattr(self.causal_lm.config, "_commit_hash", None)

    def get_ready(self, cuda_graphs: bool | None, most_sequences: int) -> None:
        """Make the decoder, and replay small passes of up to `most_sequences` as CUDA graphs.

        cuda_graphs: True demands graphs; None takes them where its passes can be captured here.

        Raises `Pard2Error` for an architecture that cannot be batched, and for graphs that cannot be had.
        """
        if cuda_graphs or (can_capture(self.decoder, self.device) and cuda_graphs is None):
            self.decoder = graphed(self.decoder, self.name, self.device, most_sequences)
