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
    dtype = torch.promote_types(image_bd.dtype, torch.float32)
    image_bd, text_bd = image_bd.to(dtype), text_bd.to(dtype)
    all_image, all_text = peers.gather_rows(torch.cat([image_bd, text_bd], dim=1)).chunk(2, dim=1)
    target = peers.rank * image_bd.shape[0] + torch.arange(image_bd.shape[0], device=image_bd.device)
    image_to_text = F.cross_entropy(scale.to(dtype) * image_bd @ all_text.T, target)
    text_to_image = F.cross_entropy(scale.to(dtype) * text_bd @ all_image.T, target)
    return (image_to_text + text_to_image) / 2
