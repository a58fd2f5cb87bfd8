"""Zero-shot classification where any number of classes may apply to an image: how well each class's prompts rank the images."""

from pathlib import Path

import torch
from torch import Tensor

from trainer.data.batch import EvaluationBatch
from trainer.data.limits import LeftOut
from trainer.distributed.agree import first_reads, raise_together
from trainer.evaluation.classification_set import ClassificationSet, read_classification_set
from trainer.evaluation.ranking import similarity
from trainer.evaluation.setting import Setting
from trainer.evaluation.wording import OWN, Wording
from trainer.evaluation.zeroshot import class_embeddings


def multilabel(folder: str | Path, setting: Setting, what: str, wording: Wording = OWN) -> dict[str, float]:
    """Rank the test images of a CLIP_benchmark folder by each class, whose numbers are in `.npy`. A collective: every rank takes
    a slice and gets the whole result.

    what: the configuration key, for messages; wording: as in zeroshot. `mean_average_precision`: over the classes that apply to
    some image; `mean_average_precision_chance`: that of equal scores; `images`, and where there are any `bad_samples` and
    `bad_shards`.
    Raises UserError on every rank for a bad folder, samples without `.npy`, and classes out of range.
    """
    dataset = first_reads(lambda: read_classification_set(folder, what, wording), setting.processes)
    classes_cd = class_embeddings(dataset, setting)
    left_out = LeftOut()
    scores, applies = [], []
    for batch in setting.batches(dataset.shards, left_out):
        raise_together(_label_problem(batch, dataset, f"{what}={folder}"), setting.processes)
        scores.append(similarity(setting.embed_images(batch.images), classes_cd))
        # A filling row has -1 for every class.
        applies.append(_applies(batch, len(dataset.classes)).to(classes_cd.device))
    nothing = f"{what}: the test shards of {folder} contain no usable image with its classes in .npy"
    raise_together(None if scores else "; ".join([nothing, *left_out.told()]), setting.processes)
    scores_nc, applies_nc = (setting.processes.gather_rows(torch.cat(rows)) for rows in (scores, applies))
    valid_n = applies_nc[:, 0] >= 0
    scores_nc, applies_nc = scores_nc[valid_n], applies_nc[valid_n].bool()
    used_c = applies_nc.any(dim=0)
    raise_together(None if used_c.any() else f"{what}: no class applies to any test image of {folder}", setting.processes)
    scores_nc, applies_nc = scores_nc[:, used_c], applies_nc[:, used_c]
    precisions = [average_precision(scores_n, applies_n) for scores_n, applies_n in zip(scores_nc.T, applies_nc.T, strict=True)]
    return {
        "mean_average_precision": sum(precisions) / len(precisions),
        "mean_average_precision_chance": applies_nc.double().mean().item(),
        "images": float(len(scores_nc)),
        **left_out.metrics(),
    }


def average_precision(scores_n: Tensor, applies_n: Tensor) -> float:
    """The mean precision at the places of the images it applies to, of which there is one at least; ranked by falling scores.

    Images of equal scores are at one place, which is the last of them, as in scikit-learn's `average_precision_score`: then the
    order of the images does not matter. A score that is not a number is the highest of an image it does not apply to, else the
    lowest.
    """
    scores_n = torch.where(scores_n.isnan(), torch.where(applies_n, -torch.inf, torch.inf), scores_n)
    order_n = scores_n.argsort(descending=True, stable=True)
    levels_n, found_n = scores_n[order_n], applies_n[order_n].double()
    last_n = torch.ones_like(applies_n)
    last_n[:-1] = levels_n[:-1] != levels_n[1:]
    places_k = torch.arange(1, len(levels_n) + 1, device=levels_n.device)[last_n]
    recalled_k = found_n.cumsum(0)[last_n]
    gained_k = recalled_k.diff(prepend=recalled_k.new_zeros(1))
    return (gained_k * recalled_k / places_k).sum().item() / found_n.sum().item()


def _applies(batch: EvaluationBatch, classes: int) -> Tensor:
    """int8 `[b, classes]`: 1 where the class applies, 0 where it does not, -1 in filling rows."""
    applies_bc = torch.where(batch.valid, 0, -1).to(torch.int8)[:, None].repeat(1, classes)
    for row_c, of_image in zip(applies_bc, batch.classes, strict=True):
        row_c[of_image or []] = 1
    return applies_bc


def _label_problem(batch: EvaluationBatch, dataset: ClassificationSet, what: str) -> str | None:
    """The line that tells the user about the first bad sample of the batch, or None."""
    count = len(dataset.classes)
    for valid, of_image, name in zip(batch.valid.tolist(), batch.classes, batch.ids, strict=True):
        if valid and of_image is None:
            return f"{what}: sample {name} has no .npy with a number for each class; add one to every sample"
        if valid and of_image and max(of_image) >= count:
            return f"{what}: sample {name} has class {max(of_image)}; the {count} classes are numbered 0 to {count - 1}"
    return None
