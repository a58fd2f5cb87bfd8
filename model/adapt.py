"""Weights of one model for another of the same width: other image sizes, patches and lengths of text, and chosen blocks."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig

BLOCK = re.compile(r"towers\.(\d+)\.blocks\.(\d+)\.(.*)")
PATCHES, KERNEL = "patches.position", "patches.project.weight"
WORDS, TABLE = "tokens.position", "tokens.table.weight"
LOGITS = ("scale.log_scale", "bias.logit_bias")
"""The scale and bias of the logits, which mean something for one contrastive loss alone."""


@dataclass(frozen=True)
class Adaptation:
    """What becomes of each tensor of a source model in a target model.

    blocks: for each block of the target, the one of the source that it starts from, or None for a new one, in both towers if
    they are as deep, else in the first; same_pieces: whether a token id means the same piece of text in both.

    Of two towers, one takes the images', and of what is about texts alone the tokens, if they are as wide.
    """

    source: ModelConfig
    target: ModelConfig
    blocks: tuple[int | None, ...]
    same_pieces: bool = True

    @property
    def changes_nothing(self) -> bool:
        """Whether every tensor is taken as it is, under its own name."""
        shapes = [(one.towers, one.image_size, one.patch, one.text_length, one.vocabulary) for one in (self.source, self.target)]
        return shapes[0] == shapes[1] and self.same_pieces and self.same_loss and self.blocks == same_blocks(self.source.layers)

    @property
    def same_loss(self) -> bool:
        """Whether both are trained with the same contrastive loss; if not, the scale and bias of the logits start anew."""
        return self.source.loss == self.target.loss

    def names(self, name: str) -> list[str]:
        """The target's tensors that start from one of the source: none if it is left out, several if its block is used again."""
        if (name in LOGITS and not self.same_loss) or (self.joins_towers and self._left_out(name)):
            return []
        found = BLOCK.fullmatch(name)
        if found is None:
            return [name]
        tower, block, after = found.groups()
        starts = enumerate(self._blocks_of(int(tower)))
        return [f"towers.{tower}.blocks.{index}.{after}" for index, start in starts if start == int(block)]

    @property
    def joins_towers(self) -> bool:
        """Whether two towers become one."""
        return self.source.towers > self.target.towers

    def _left_out(self, name: str) -> bool:
        """Whether the one tower has no use for a tensor of two."""
        other_width = self.source.text_tower.width != self.target.width
        return name.startswith(("towers.1.", "heads.text.")) or (other_width and name.startswith("tokens."))

    def _blocks_of(self, tower: int) -> tuple[int | None, ...]:
        as_deep = all(model.text_tower.layers == model.layers for model in (self.source, self.target))
        return self.blocks if tower == 0 or as_deep else same_blocks(self.source.text_tower.layers)

    def fitted(self, name: str, value: Tensor, new: Tensor) -> Tensor:
        """A tensor of the source in the shape that the target has for it. new: the target's, for the parts that start anew."""
        if name == PATCHES:
            return resize_positions(value, self.target.image_size // self.target.patch)
        if name == KERNEL:
            return resize_patches(value, self.target.patch)
        if name == WORDS or (name == TABLE and self.same_pieces):
            return _first_rows(value, new)
        return new if name == TABLE else value

    def tensors(self, source: Iterable[tuple[str, Tensor]], new: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Names and values for the target from those of the source. new: the target's own, by name."""
        for name, value in source:
            for own in self.names(name):
                yield own, self.fitted(own, value, new.get(own, value))


def same_blocks(layers: int) -> tuple[int | None, ...]:
    """Each block starts from the one with its number."""
    return tuple(range(layers))


def resize_positions(position_ld: Tensor, side: int) -> Tensor:
    """Learned positions of a square grid of patches, `[L, D]`, for `side` x `side` patches: bicubic, with antialiasing.

    Dosovitskiy et al. 2021 (ViT), section 3.2, interpolate likewise to fine-tune at a higher resolution.
    """
    before = round(position_ld.shape[0] ** 0.5)
    if before == side:
        return position_ld
    grid = position_ld.view(1, before, before, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(0, 2)


def resize_patches(weight: Tensor, patch: int) -> Tensor:
    """The patch projection `[D, 3 * p * p]` for patches of another side.

    The pseudo-inverse resize of FlexiViT (Beyer et al. 2023, section 3.4): a larger patch that is the smaller one enlarged
    (bilinearly) gets the same embedding exactly; for smaller patches it is the nearest in the mean square.
    """
    before = round((weight.shape[1] // 3) ** 0.5)
    if before == patch:
        return weight
    enlarge = _bilinear(before, patch).to(weight.device)
    kernels = weight.double().view(-1, before * before)
    return (kernels @ torch.linalg.pinv(enlarge)).view(weight.shape[0], -1).to(weight.dtype)


def _bilinear(before: int, after: int) -> Tensor:
    """The matrix `[after², before²]`, float64, that resizes an image of `before` x `before` pixels."""
    basis = torch.eye(before * before, dtype=torch.float64).view(-1, 1, before, before)
    return F.interpolate(basis, size=(after, after), mode="bilinear", antialias=True, align_corners=False).flatten(1).T


def _first_rows(value: Tensor, new: Tensor) -> Tensor:
    """The rows of `value` as far as `new` has any, and the rest of `new`: what stood first keeps its meaning."""
    kept = min(len(value), len(new))
    return torch.cat([value[:kept], new[kept:].to(value)])


def check_blocks(blocks: Sequence[int | None], source: ModelConfig, target: ModelConfig) -> str | None:
    """What is wrong with the source's blocks that a target shall start from, if anything."""
    if len(blocks) != target.layers:
        return f"it names {len(blocks)} blocks, but model.layers={target.layers}"
    beyond = [block for block in blocks if block is not None and block >= source.layers]
    if beyond:
        return f"there is no block {beyond[0]}, only 0 to {source.layers - 1}"
    dense = [own for own, block in enumerate(blocks) if block in source.expert_layers and own not in target.expert_layers]
    if dense:
        return f"block {dense[0]} would start from a block with experts, but is not in model.expert_layers"
    return None
