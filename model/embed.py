"""From pixels and token ids to sequences of vectors."""

import torch
from torch import Tensor, nn

from model.config import ModelConfig

PAD = 0
"""Token id of padding."""


class PatchEmbed(nn.Module):
    """Non-overlapping patches, projected linearly, with learned positions (ViT); behind them a class token, if it is pooled."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.project = nn.Linear(3 * config.patch**2, config.width)
        self.position = nn.Parameter(torch.empty(config.image_patches, config.width))
        self.class_token = nn.Parameter(torch.empty(config.width)) if config.pool == "token" else None
        self.norm = nn.LayerNorm(config.width, config.norm_eps) if config.image_norm else None

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
        if self.class_token is not None:
            x = torch.cat([x, self.class_token.expand(b, 1, -1)], dim=1)
        if self.norm is not None:
            x = self.norm(x)
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)


class TextEmbed(nn.Module):
    """A learned table of token vectors with learned positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Parameter(torch.empty(config.text_length, config.width))
        self.hides_pads = config.text_mask != "none"

    def forward(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids int64 `[B, L]`, 0 for padding -> tokens `[B, L, D]` and their validity `[B, L]`."""
        return self.table(texts) + self.position[: texts.shape[1]], (texts != PAD) | (not self.hides_pads)
