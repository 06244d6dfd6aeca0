"""A projection that learns from standardised features and is an ordinary one to everybody else."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pard2.models.draft import Projection


class StandardisedProjection(nn.Module):
    """Learns V in `scale * W f = unit * V (f / std)`, `unit = embedding_rms / sqrt(F)`.

    Features of the residual stream differ in size by orders of magnitude, and an optimizer whose steps have
    one size for all weights learns the small ones too slowly and overshoots with the large ones. With V, a
    step moves the projected feature by a like share of the embedding that it is added to. The family of
    functions is the same; `weight` is the W that a checkpoint holds.
    """

    columns: Tensor

    def __init__(self, start: Projection, std: Tensor, scale: float, embedding_rms: float) -> None:
        """An untrained V that stands for the same W.

        start: the projection to start from, W [hidden, F] and perhaps a bias.
        std: [F], typical size of each feature.
        """
        super().__init__()
        std = std.clamp(min=1e-6)
        unit = embedding_rms / start.weight.shape[1] ** 0.5
        self.register_buffer("columns", unit / (scale * std))  # [F]: W = V diag(columns)
        self.inner = nn.Parameter(start.weight.detach() / self.columns)
        self.bias = start.bias

    @property
    def weight(self) -> Tensor:
        return self.inner * self.columns

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features * self.columns, self.inner, self.bias)


@torch.no_grad()
def feature_std(features: list[Tensor]) -> Tensor:
    """[F] root mean square of each feature over conversations [N_i, F].

    First tokens are left out: they are outliers by nature.
    """
    return torch.cat([f[1:] for f in features]).float().square().mean(0).sqrt()
