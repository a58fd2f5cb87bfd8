"""CLIP and SigLIP written down again, from their papers, with torch's own modules and open_clip's names: what ours must equal."""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, END = 30, 29


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, activation: nn.Module, eps: float) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        parts = OrderedDict(c_fc=nn.Linear(width, hidden), gelu=activation, c_proj=nn.Linear(hidden, width))
        self.mlp = nn.Sequential(parts)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, layers: int, *sizes: Any) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(*sizes) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, embedding: int, activation: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 4, 4, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(32))
        self.positional_embedding = nn.Parameter(torch.empty(10, 32))
        self.ln_pre, self.ln_post = nn.LayerNorm(32), nn.LayerNorm(32)
        self.transformer = Transformer(3, 32, 4, 40, activation, 1e-5)
        self.proj = nn.Parameter(torch.empty(32, embedding))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class CLIP(nn.Module):
    """Images of 12 pixels in patches of 4, width 32, 3 blocks; texts of 7 tokens, width 24, 2 blocks; 20 dimensions."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.visual = Visual(20, activation)
        self.token_embedding = nn.Embedding(VOCABULARY, 24)
        self.positional_embedding = nn.Parameter(torch.empty(7, 24))
        self.transformer = Transformer(2, 24, 3, 48, activation, 1e-5)
        self.ln_final = nn.LayerNorm(24)
        self.text_projection = nn.Parameter(torch.empty(24, 20))
        self.logit_scale = nn.Parameter(torch.empty([]))

    def encode_text(self, texts: Tensor) -> Tensor:
        mask = torch.full((7, 7), -torch.inf, dtype=self.logit_scale.dtype).triu(1)
        x = self.ln_final(self.transformer(self.token_embedding(texts) + self.positional_embedding, mask))
        return x[torch.arange(len(x)), texts.argmax(-1)] @ self.text_projection

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors of both. texts: token ids that end with END, then zeros."""
        return F.normalize(self.visual(images), dim=-1), F.normalize(self.encode_text(texts), dim=-1)


SIZES: dict[str, Any] = {
    "towers": 2,
    "width": 32,
    "mlp": 40,
    "heads": 4,
    "layers": 3,
    "text_width": 24,
    "text_mlp": 48,
    "text_heads": 3,
    "text_layers": 2,
    "image_size": 12,
    "patch": 4,
    "text_length": 7,
    "vocabulary": VOCABULARY + 1,
    "embedding": 20,
    "pool": "token",
    "text_mask": "causal",
    "image_norm": True,
}
"""Of the same model, as ModelConfig has them."""


def random_clip(seed: int = 0, activation: nn.Module | None = None) -> CLIP:
    """With every parameter a random normal, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    clip = CLIP(activation or nn.GELU()).eval().requires_grad_(False)
    for parameter in clip.parameters():
        parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return clip


def random_texts(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids `[n, 7]` as CLIP takes them, token 0 among them, and as we do."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randint(0, END, (count, 7), generator=generator)
    length = torch.randint(0, 7, (count, 1), generator=generator)
    place = torch.arange(7)
    texts = torch.where(place < length, texts, torch.where(place == length, END, 0))
    return texts, torch.where(place <= length, texts + 1, 0)
