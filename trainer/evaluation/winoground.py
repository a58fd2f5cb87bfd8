"""Winoground: two images and two captions of the same words in another order; which belongs to which?

Thrush et al., "Winoground: Probing Vision and Language Models for Visio-Linguistic Compositionality", 2022, section 3.2.
"""

from collections import defaultdict
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from trainer.data.limits import LeftOut
from trainer.data.shards.patterns import list_shards
from trainer.distributed.agree import first_reads, raise_together
from trainer.evaluation.retrieval import embed_captioned_images
from trainer.evaluation.setting import Setting

MEMBERS = ("_0", "_1")
"""How the keys of an image with its caption, and of the other one, end."""


def winoground(shards: Any, setting: Setting, what: str) -> dict[str, float]:
    """How often the members of a pair find each other, and not those of their twin.

    shards: a pattern, a list, or a folder, from the configuration key `what`; a sample is an image with its caption, and the
    samples `KEY_0` and `KEY_1` of a shard are twins. `text_score`: both images are nearer to their own caption than to the other;
    `image_score`: both captions are nearer to their own image; `group_score`: all of that; each with `<name>_chance`. `images`
    and `captions` are counts, and so are `bad_samples` and `bad_shards`, where there are any. A sample without its twin is left
    out.
    Ties are treated as in `trainer.evaluation.ranking`. A collective. Raises UserError on every rank when there are no twins.
    """
    listed = first_reads(lambda: list_shards(shards, what), setting.processes)
    left_out = LeftOut()
    images_nd, captions, ids = embed_captioned_images(listed, setting, left_out)
    twins_p2 = torch.tensor(find_twins(ids), dtype=torch.int64, device=images_nd.device).view(-1, 2)
    nothing = f"{what}: {shards} contains no samples KEY{MEMBERS[0]} and KEY{MEMBERS[1]}, each an image with its caption"
    raise_together(None if len(twins_p2) else "; ".join([nothing, *left_out.told()]), setting.processes)
    captions_nd = setting.embed_texts([of_image[0] for of_image in captions])
    # In double and rounded, as in `similarity`.
    scores_pic = (images_nd[twins_p2].double() @ captions_nd[twins_p2].double().mT).float()
    return {
        **twin_scores(scores_pic),
        "text_score_chance": 1 / 4,
        "image_score_chance": 1 / 4,
        "group_score_chance": 1 / 6,
        "images": float(twins_p2.numel()),
        "captions": float(twins_p2.numel()),
        **left_out.metrics(),
    }


def find_twins(ids: list[str]) -> list[tuple[int, int]]:
    """The places of `KEY_0` and `KEY_1` among the ids, of each key that has both, in the order of the keys."""
    places: dict[str, dict[str, int]] = defaultdict(dict)
    for place, name in enumerate(ids):
        places[name[:-2]][name[-2:]] = place
    return [(of_key[MEMBERS[0]], of_key[MEMBERS[1]]) for _, of_key in sorted(places.items()) if set(of_key) == set(MEMBERS)]


def twin_scores(scores_pic: Tensor) -> dict[str, float]:
    """The three scores from the cosines of each pair's images and captions, `[p, 2, 2]`.

    Equal scores are in random order: the mean over the 24 orders (o) that four of them can have. One that is not a number beats
    none, and is not beaten. Legend: p pairs, m members, i images, c captions.
    """
    own_pm = scores_pic.diagonal(dim1=1, dim2=2)  # of both members
    other_pm = scores_pic.flip(2).diagonal(dim1=1, dim2=2)  # of each image with the other caption
    orders_o4 = torch.tensor(list(permutations(range(4))), device=scores_pic.device)
    own_om, other_om = orders_o4[:, None, :2], orders_o4[:, None, 2:]
    text_op = _beats(own_pm, other_pm, own_om, other_om).all(dim=-1)
    image_op = _beats(own_pm, other_pm.flip(1), own_om, other_om.flip(-1)).all(dim=-1)
    scores = {"text_score": text_op, "image_score": image_op, "group_score": text_op & image_op}
    return {name: right_op.double().mean().item() for name, right_op in scores.items()}


def _beats(a_pm: Tensor, b_pm: Tensor, order_a: Tensor, order_b: Tensor) -> Tensor:
    """Whether a is larger than b, or equal and later in the order, `[o, p, m]`."""
    return (a_pm > b_pm) | ((a_pm == b_pm) & (order_a > order_b))
