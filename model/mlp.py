"""The Transformer's MLP."""

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Two linear maps with a GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x_nd: Tensor) -> Tensor:
        """`[N, D]` -> `[N, D]`."""
        return self.down(F.gelu(self.up(x_nd)))
