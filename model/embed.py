"""From pixels and token ids to sequences of vectors."""

import torch
from torch import Tensor, nn

from model.config import ModelConfig

PAD = 0
"""Token id of padding."""


class PatchEmbed(nn.Module):
    """Non-overlapping patches, projected linearly, with learned positions (ViT)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.project = nn.Linear(3 * config.patch**2, config.width)
        self.position = nn.Parameter(torch.empty(config.image_tokens, config.width))

    def forward(self, images: Tensor, kept_bl: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalised images `[B, 3, H, W]` -> tokens `[B, L, D]` and their validity `[B, L]`, all True.

        kept_bl: int64 `[B, L]`, the patches of each image that become tokens; None: all.
        """
        p = self.patch
        b, c, h, w = images.shape
        patches = images.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p * p)
        position: Tensor = self.position
        if kept_bl is not None:
            patches = patches.gather(1, kept_bl.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
            position = position[kept_bl]
        x = self.project(patches.to(self.project.weight.dtype)) + position
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)


class TextEmbed(nn.Module):
    """A learned table of token vectors with learned positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Parameter(torch.empty(config.text_length, config.width))

    def forward(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids int64 `[B, L]`, 0 for padding -> tokens `[B, L, D]` and their validity `[B, L]`."""
        return self.table(texts) + self.position[: texts.shape[1]], texts != PAD
