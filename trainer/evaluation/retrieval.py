"""Retrieval: from an image to its captions and from a caption to its image, among those of the whole set."""

from typing import Any

import torch
from torch import Tensor

from trainer.data.limits import LeftOut
from trainer.data.shards.patterns import list_shards
from trainer.distributed.agree import first_reads, raise_together
from trainer.evaluation.examples import Sample, found_for_first_captions, retrieval_table
from trainer.evaluation.ranking import chance, hits, similarity
from trainer.evaluation.setting import Setting
from trainer.evaluation.shots import Draw

KS = (1, 5, 10)
SCORES_AT_ONCE = 2**22  # scores of one chunk: 32 MiB in double


def retrieval(shards: Any, setting: Setting, what: str = "eval.retrieval") -> dict[str, float]:
    """Recall at 1, 5 and 10 over all pairs of the shards (a pattern, a list, or a folder, from the
    configuration key `what`), for any number of captions per image.

    `i2t_r<k>`: share of the images with any of their captions among the k nearest captions; `t2i_r<k>`: share of the captions
    with their image among the k nearest images; each with `<name>_chance`. `modality_gap` and `pair_cosine` as in `modality_gap`.
    `images` and `captions` are counts, and so are `bad_samples` and `bad_shards`, where there are any. Images without
    a caption are left out. Ties are treated as in `trainer.evaluation.ranking`. A collective: every rank takes a slice of the
    images, then of the queries, and gets the whole result. Raises UserError on every rank when the shards contain no pair.
    """
    listed = first_reads(lambda: list_shards(shards, what), setting.processes)
    left_out = LeftOut()
    sample = Sample(Draw(listed), setting.examples)
    images_nd, captions, ids = embed_captioned_images(listed, setting, left_out, sample=sample)
    nothing = "; ".join([f"{what}: {shards} contains no image with a caption", *left_out.told()])
    raise_together(None if captions else nothing, setting.processes)
    owner_t = torch.tensor([image for image, of_image in enumerate(captions) for _ in of_image], device=images_nd.device)
    captions_td = setting.embed_texts([caption for of_image in captions for caption in of_image])
    image_n = torch.arange(len(images_nd), device=images_nd.device)
    if drawn := sample.together(setting.processes):
        found = found_for_first_captions([number for number, _, _ in drawn], owner_t, images_nd, captions_td)
        images = {ids[number]: image for number, image, _ in drawn}
        images |= _read_again({ids[number] for number in found} - images.keys(), listed, setting)
        answers = [(number, images[ids[number]]) for number in found]
        setting.tables.append(retrieval_table(drawn, answers, images_nd, captions_td, captions))
    return {
        **_recall("i2t", images_nd, image_n, captions_td, owner_t, setting),
        **_recall("t2i", captions_td, owner_t, images_nd, image_n, setting),
        **modality_gap(images_nd, captions_td, owner_t),
        "images": float(len(images_nd)),
        "captions": float(len(captions_td)),
        **left_out.metrics(),
    }


def embed_captioned_images(
    shards: list[str], setting: Setting, left_out: LeftOut, least: int = 1, sample: Sample | None = None
) -> tuple[Tensor, list[list[str]], list[str]]:
    """All ranks' images with `least` captions or more, float32 `[n, D]`; the captions and the id of each. A collective.

    sample: gets these images.
    """
    rows, kept = [], []
    captions: list[tuple[str, list[str]]] = []
    for batch in setting.batches(shards, left_out):
        rows.append(setting.embed_images(batch.images))
        # Filling rows have no captions either.
        kept.append(torch.tensor([len(of_image) >= least for of_image in batch.captions]))
        captions += [pair for pair in zip(batch.ids, batch.captions, strict=True) if len(pair[1]) >= least]
        if sample is not None:
            sample.add(batch, kept[-1].nonzero().flatten().tolist())
    if not rows:  # then there is none on any rank: all have the same number of batches
        return torch.empty(0, 0, device=setting.processes.device), [], []
    device = rows[0].device
    kept_n = setting.processes.gather_rows(torch.cat(kept).to(device, torch.uint8)).bool()
    images_nd = setting.processes.gather_rows(torch.cat(rows))[kept_n]
    together = [pair for of_rank in setting.processes.gather_objects(captions) for pair in of_rank]
    return images_nd, [of_image for _, of_image in together], [name for name, _ in together]


def _read_again(names: set[str], shards: list[str], setting: Setting) -> dict[str, Tensor]:
    """The images of these ids, uint8 `[3, H, W]`, because a gallery is not kept; black where one is gone. A collective."""
    theirs = [shard for shard in shards if any(name.startswith(f"{shard}/") for name in names)]
    mine: dict[str, Tensor] = {}
    for batch in setting.batches(theirs, LeftOut(), only=frozenset(names)):
        mine |= {name: image.clone() for name, image in zip(batch.ids, batch.images, strict=True) if name}
    together = {name: torch.zeros(3, setting.image_size, setting.image_size, dtype=torch.uint8) for name in names}
    for of_rank in setting.processes.gather_objects(mine):
        together |= of_rank
    return together


def _recall(
    direction: str, queries_qd: Tensor, image_q: Tensor, gallery_md: Tensor, image_m: Tensor, setting: Setting
) -> dict[str, float]:
    """Recall and chance in one direction: a candidate is right when it belongs to the query's image. A collective."""
    mine = slice(setting.processes.rank, None, setting.processes.world)
    found_k = setting.processes.sum(count_hits(queries_qd[mine], image_q[mine], gallery_md, image_m))
    right_q = torch.bincount(image_m)[image_q]
    metrics = {}
    for k, found in zip(KS, found_k.tolist(), strict=True):
        metrics[f"{direction}_r{k}"] = found / len(queries_qd)
        metrics[f"{direction}_r{k}_chance"] = chance(right_q, len(gallery_md), k)
    return metrics


def modality_gap(images_nd: Tensor, captions_td: Tensor, image_t: Tensor) -> dict[str, float]:
    """Where the two modalities lie, from unit vectors `[n, D]` and `[t, D]`, and the image that each caption belongs to.

    `modality_gap`: the distance between the mean image and the mean caption, from 0 to 2 (Liang et al., "Mind the gap", 2022,
    section 4.1); `pair_cosine`: the mean cosine of a caption and its image.
    """
    images_nd = images_nd.double()
    captions_nd = torch.zeros_like(images_nd).index_add_(0, image_t, captions_td.double())  # the sum of each image's
    gap = (images_nd.mean(dim=0) - captions_nd.sum(dim=0) / len(captions_td)).norm()
    cosine = (images_nd * captions_nd).sum() / len(captions_td)
    return {"modality_gap": gap.item(), "pair_cosine": cosine.item()}


def count_hits(
    queries_qd: Tensor, image_q: Tensor, gallery_md: Tensor, image_m: Tensor, scores_at_once: int = SCORES_AT_ONCE
) -> Tensor:
    """How many queries find a candidate of their own image among the k best, float64 `[len(KS)]`, k in KS.

    queries `[q, D]` and gallery `[m, D]` are unit vectors, image_q and image_m int64 the image each belongs to; every query
    has at least one candidate. Chunks of queries keep the scores in memory at about `scores_at_once` (one query's at least).
    """
    found_k = torch.zeros(len(KS), dtype=torch.float64, device=queries_qd.device)
    gallery_md = gallery_md.double()  # once, not in every chunk
    chunk = max(1, scores_at_once // len(gallery_md))
    for rows_qd, owner_q in zip(queries_qd.split(chunk), image_q.split(chunk), strict=True):
        right_qm = owner_q[:, None] == image_m[None, :]
        found_k += hits(similarity(rows_qd, gallery_md), right_qm, KS).sum(dim=1)
    return found_k
