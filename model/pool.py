"""From the tokens of an image or text to one vector."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.mlp import MLP


def mean_token(x_bld: Tensor, valid_bl: Tensor) -> Tensor:
    """The average of the valid tokens, `[B, D]`."""
    weight = valid_bl.unsqueeze(-1).to(x_bld.dtype)
    return (x_bld * weight).sum(1) / weight.sum(1).clamp(min=1)


def last_token(x_bld: Tensor, valid_bl: Tensor) -> Tensor:
    """The last valid token, `[B, D]`: an image's class token, a text's end; the first if none is valid."""
    place_l = torch.arange(valid_bl.shape[1], device=valid_bl.device)
    last_b = (valid_bl * place_l).amax(1)
    return x_bld.gather(1, last_b.view(-1, 1, 1).expand(-1, 1, x_bld.shape[2])).squeeze(1)


class AttentionPool(nn.Module):
    """A learned query attends to all tokens of an image, and passes an MLP (Lee et al. 2019, Set Transformer; SigLIP's head)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Parameter(torch.empty(config.width))
        self.q = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(config.width, 2 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = MLP(config.width, config.mlp, config.activation)

    def forward(self, x_bld: Tensor) -> Tensor:
        """`[B, L, D]` -> `[B, D]`."""
        b, length, _ = x_bld.shape
        q = self.q(self.query).view(1, self.heads, 1, -1).expand(b, -1, -1, -1)
        k, v = self.kv(x_bld).view(b, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        y_bd = self.out(F.scaled_dot_product_attention(q, k, v).flatten(1))
        return y_bd + self.mlp(self.norm(y_bd))
