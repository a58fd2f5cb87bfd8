"""The contrastive loss of every pair by itself, to see which are hard: of one source of data or another. Without gradient."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.peers import Peers

AT_ONCE = 1024  # rows of logits


@torch.no_grad()
def pair_losses(pair_bd: Tensor, scale: Tensor, peers: Peers, bias: Tensor | None = None) -> Tensor:
    """What each of this process's pairs adds to the loss, `[b]`: the mean over the pairs of all processes is that of the batch.

    pair_bd: image and text embeddings as `pair_rows` gives them; scale, bias: of the logits, scalars. The loss is sigmoid if they
    have a bias, each image with all texts; else softmax. A collective.
    """
    all_bd, first = peers.gather_rows(pair_bd), peers.rank * len(pair_bd)
    images_bd, texts_bd = all_bd.chunk(2, dim=1)
    scale = scale.to(pair_bd.dtype)
    losses = []
    for rows_cd in pair_bd.split(AT_ONCE):
        image_cd, text_cd = rows_cd.chunk(2, dim=1)
        target = first + torch.arange(len(rows_cd), device=rows_cd.device)
        first += len(rows_cd)
        if bias is not None:
            losses.append(_sigmoid(scale * image_cd @ texts_bd.T + bias, target))
        else:
            image_to_text = F.cross_entropy(scale * image_cd @ texts_bd.T, target, reduction="none")
            text_to_image = F.cross_entropy(scale * text_cd @ images_bd.T, target, reduction="none")
            losses.append((image_to_text + text_to_image) / 2)
    return torch.cat(losses)


def _sigmoid(logits_cb: Tensor, target_c: Tensor) -> Tensor:
    """Minus the log-likelihood that an image's own text is its pair and no other is (SigLIP)."""
    right_cb = (-logits_cb).scatter(1, target_c[:, None], logits_cb.gather(1, target_c[:, None]))
    return -F.logsigmoid(right_cb).sum(1)
