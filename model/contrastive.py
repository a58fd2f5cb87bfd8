"""The contrastive loss over the global batch (CLIP; LIMoE, section 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.peers import Peers


def contrastive_loss(image_bd: Tensor, text_bd: Tensor, scale: Tensor, peers: Peers) -> Tensor:
    """Softmax InfoNCE, image-to-text and text-to-image averaged, of this process's rows against those of all processes.

    image_bd, text_bd: L2-normalised `[b, D]`, row i of both is a pair; scale: logit scale, a scalar. The mean of the result over
    processes is the loss of the global batch, and so for gradients, which flow through the gathered rows too. Float32 at least.
    """
    pair_bd = pair_rows(image_bd, text_bd)
    return loss_of_rows(pair_bd, peers.gather_rows(pair_bd), peers.rank * len(pair_bd), scale)


def pair_rows(image_bd: Tensor, text_bd: Tensor) -> Tensor:
    """Each pair as one row, image before text: `[b, 2D]`, float32 at least."""
    dtype = torch.promote_types(image_bd.dtype, torch.float32)
    return torch.cat([image_bd.to(dtype), text_bd.to(dtype)], dim=1)


def loss_of_rows(pair_bd: Tensor, all_pair_bd: Tensor, first: int, scale: Tensor) -> Tensor:
    """The mean loss of some pairs against all of the batch, among which they come from index `first` on; see `pair_rows`."""
    image_bd, text_bd = pair_bd.chunk(2, dim=1)
    all_image, all_text = all_pair_bd.chunk(2, dim=1)
    scale = scale.to(pair_bd.dtype)
    target = first + torch.arange(len(pair_bd), device=pair_bd.device)
    image_to_text = F.cross_entropy(scale * image_bd @ all_text.T, target)
    text_to_image = F.cross_entropy(scale * text_bd @ all_image.T, target)
    return (image_to_text + text_to_image) / 2
