"""Patch dropout: training sees a random part of each image's patches, evaluation all of them.

A step then costs less, and the same time buys more pairs (FLIP, Li et al. 2022, "Scaling Language-Image Pre-training via
Masking", arXiv 2212.00794). The number of patches that stay is fixed, and so are all shapes.
"""

import numpy as np
import torch
from torch import Tensor

BLOCK = 4
"""64-bit numbers of a step of Philox's counter (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3")."""


def draw_kept(key: int, first: int, images: int, patches: int, kept: int) -> Tensor:
    """The patches that stay of consecutive images: int64 `[images, kept]`, on the CPU, each row ascending.

    key: of 64 bits. first: the number of the first image among those that share a key. An image's row is a function of key and
    number alone, so whoever has it draws the same, and in any pass over it.
    """
    blocks = -(-patches // BLOCK)
    random = np.random.Generator(np.random.Philox(key=key, counter=first * blocks))
    order = random.random((images, blocks * BLOCK))[:, :patches].argsort(axis=1)
    return torch.from_numpy(np.sort(order[:, :kept], axis=1))
