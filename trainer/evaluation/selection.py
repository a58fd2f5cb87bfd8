"""Caption selection, as in SugarCrepe: an image has one true caption, and others that differ in a detail."""

from typing import Any

import torch
from torch import Tensor

from trainer.data.limits import LeftOut
from trainer.data.shards.patterns import list_shards
from trainer.distributed.agree import first_reads, raise_together
from trainer.evaluation.ranking import chance, hits
from trainer.evaluation.retrieval import embed_captioned_images
from trainer.evaluation.setting import Setting


def selection(shards: Any, setting: Setting, what: str) -> dict[str, float]:
    """How often the first of an image's captions is the nearest of them: `top1`, as CLIP_benchmark's `image_caption_selection`.

    shards: a pattern, a list, or a folder, from the configuration key `what`. `top1_chance` is the mean of 1 / captions; `images`
    and `captions` are counts, and so are `bad_samples` and `bad_shards`, where there are any. Images with fewer than two captions
    are left out. Ties are treated as in `trainer.evaluation.ranking`. A collective. Raises UserError on every rank when no image
    has a choice.
    """
    listed = first_reads(lambda: list_shards(shards, what), setting.processes)
    left_out = LeftOut()
    images_nd, captions, _ = embed_captioned_images(listed, setting, left_out, least=2)
    nothing = "; ".join([f"{what}: {shards} contains no image with two captions, the first of them true", *left_out.told()])
    raise_together(None if captions else nothing, setting.processes)
    captions_td = setting.embed_texts([caption for of_image in captions for caption in of_image])
    count_n = torch.tensor([len(of_image) for of_image in captions], device=images_nd.device)
    scores_nk = _own_scores(images_nd, captions_td, count_n)
    true_nk = torch.zeros_like(scores_nk, dtype=torch.bool)
    true_nk[:, 0] = True
    return {
        "top1": hits(scores_nk, true_nk, [1])[0].mean().item(),
        "top1_chance": sum(chance(torch.ones(1, dtype=torch.int64), len(of_image), 1) for of_image in captions) / len(captions),
        "images": float(len(captions)),
        "captions": float(len(captions_td)),
        **left_out.metrics(),
    }


def _own_scores(images_nd: Tensor, captions_td: Tensor, count_n: Tensor) -> Tensor:
    """The cosines of each image with its own captions, float32 `[n, most captions]`; -inf where there are no more."""
    owner_t = torch.arange(len(count_n), device=count_n.device).repeat_interleave(count_n)
    place_t = torch.arange(len(owner_t), device=count_n.device) - (count_n.cumsum(0) - count_n)[owner_t]
    scores_nk = torch.full((len(count_n), int(count_n.max())), -torch.inf, device=images_nd.device)
    # In double and rounded, as in `similarity`.
    scores_nk[owner_t, place_t] = (images_nd.double()[owner_t] * captions_td.double()).sum(dim=1).float()
    return scores_nk
