"""Zero-shot classification: an image gets the class whose prompts are nearest."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from trainer.data.batch import EvaluationBatch
from trainer.data.limits import LeftOut
from trainer.distributed.agree import first_reads, raise_together
from trainer.evaluation.classification_set import ClassificationSet, read_classification_set
from trainer.evaluation.examples import Sample, best_classes, zeroshot_table
from trainer.evaluation.ranking import chance, hits, similarity
from trainer.evaluation.setting import Setting
from trainer.evaluation.shots import Draw
from trainer.evaluation.wording import OWN, Wording

PROMPTS_AT_ONCE = 8192  # 1000 classes by 80 prompts would be 300 MiB of embeddings on every rank
WORST = 5  # so many confusions are told


@dataclass(frozen=True)
class Confusion:
    """A class that was taken for another. images: how often; share: of the true class's images."""

    true: str
    predicted: str
    images: int
    share: float


def zeroshot(
    folder: str | Path,
    setting: Setting,
    what: str = "eval.zeroshot",
    wording: Wording = OWN,
    confusions: list[Confusion] | None = None,
) -> dict[str, float]:
    """Classify the test images of a CLIP_benchmark folder; every rank takes a slice and gets the whole result. A collective.

    what: the configuration key, for messages; wording: what replaces the folder's own class names or prompts; confusions: gets
    the WORST most frequent ones, if it is there.

    Shares from 0 to 1: `top1`, `top5` (with more than five classes), `mean_per_class` (top-1, over the classes that have images),
    and each attribute of `class_attributes.json`: how often the predicted class has the true one's value. `chance` is that of
    top1 (1 / classes), `<name>_chance` that of the others; `images` is a count, and so are `bad_samples` and `bad_shards`, where
    there are any. Ties are judged as in `trainer.evaluation.ranking`.
    Raises UserError on every rank for a bad folder, for shards without `.cls` labels, and for labels out of range.
    """
    dataset = first_reads(lambda: read_classification_set(folder, what, wording), setting.processes)
    classes_cd = class_embeddings(dataset, setting)
    mistaken: Counter[tuple[int, int]] = Counter()
    judge = _Judge(dataset, classes_cd.device)
    sample = Sample(Draw(dataset.shards), setting.examples)
    left_out = LeftOut()
    for batch in setting.batches(dataset.shards, left_out):
        raise_together(_label_problem(batch, dataset, f"{what}={folder}"), setting.processes)
        images_bd = setting.embed_images(batch.images)
        valid_b = batch.valid.to(images_bd.device)
        scores_bc, labels_b = similarity(images_bd[valid_b], classes_cd), batch.labels.to(images_bd.device)[valid_b]
        judge.count(scores_bc, labels_b)
        if sample.most:
            sample.add(batch, batch.valid.nonzero().flatten().tolist(), best_classes(scores_bc, labels_b))
        if confusions is not None:
            mistaken.update(zip(labels_b.tolist(), scores_bc.argmax(dim=1).tolist(), strict=True))
    images_c = setting.processes.sum(judge.images_c)
    images = int(images_c.sum())
    unlabelled = f"{what}: the test shards of {folder} contain no usable image with its class index in .cls"
    raise_together(None if images else "; ".join([unlabelled, *left_out.told()]), setting.processes)
    if drawn := sample.together(setting.processes):
        setting.tables.append(zeroshot_table(drawn, dataset.classes))
    if confusions is not None:
        together = sum(setting.processes.gather_objects(mistaken), Counter())
        confusions += _worst(together, dataset.classes, images_c)
    return judge.result(images_c, setting.processes.sum(judge.hits_mc)) | left_out.metrics()


def _worst(mistaken: Counter[tuple[int, int]], classes: list[str], images_c: Tensor) -> list[Confusion]:
    """The most frequent pairs of different classes, those of equal counts in label order."""
    pairs = sorted((-count, true, predicted) for (true, predicted), count in mistaken.items() if true != predicted)
    return [
        Confusion(classes[true], classes[predicted], -count, -count / images_c[true].item())
        for count, true, predicted in pairs[:WORST]
    ]


def class_embeddings(dataset: ClassificationSet, setting: Setting) -> Tensor:
    """Each class's normalised mean over the templates' embeddings, float32 `[classes, D]`, on every rank. A collective."""
    templates = dataset.templates
    classes_at_once = max(1, PROMPTS_AT_ONCE // len(templates))
    means = []
    for start in range(0, len(dataset.classes), classes_at_once):
        names = dataset.classes[start : start + classes_at_once]
        prompts = setting.embed_texts(dataset.prompts(names))
        means.append(prompts.view(len(names), len(templates), -1).mean(dim=1))
    return normalize(torch.cat(means), dim=-1)


def _label_problem(batch: EvaluationBatch, dataset: ClassificationSet, what: str) -> str | None:
    """The line that tells the user about the first bad label of the batch, or None."""
    classes = len(dataset.classes)
    for valid, label, name in zip(batch.valid.tolist(), batch.labels.tolist(), batch.ids, strict=True):
        if valid and label == -1:
            return f"{what}: sample {name} has no .cls with its class index; add one to every sample"
        if valid and not 0 <= label < classes:
            return f"{what}: sample {name} has label {label}; the {classes} classes are numbered 0 to {classes - 1}"
    return None


class _Judge:
    """Counts this rank's images and hits by true class. Legend: m measures (top1, top5, attributes), c classes."""

    def __init__(self, dataset: ClassificationSet, device: torch.device) -> None:
        classes = len(dataset.classes)
        identity_c = torch.arange(classes, device=device)
        # A measure is a grouping of the classes and a number of places: right is any class of the true one's group.
        self.measures: dict[str, tuple[Tensor, int]] = {"top1": (identity_c, 1)}
        if classes > 5:
            self.measures["top5"] = (identity_c, 5)
        for name, values in dataset.attributes.items():
            group_of = {value: group for group, value in enumerate(dict.fromkeys(values))}
            self.measures[name] = (torch.tensor([group_of[value] for value in values], device=device), 1)
        self.images_c = torch.zeros(classes, dtype=torch.float64, device=device)
        self.hits_mc = torch.zeros(len(self.measures), classes, dtype=torch.float64, device=device)

    def count(self, scores_bc: Tensor, labels_b: Tensor) -> None:
        """Add images of the given scores and true classes."""
        self.images_c += torch.bincount(labels_b, minlength=len(self.images_c))
        for hits_c, (group_c, k) in zip(self.hits_mc, self.measures.values(), strict=True):
            right_bc = group_c[labels_b][:, None] == group_c[None, :]
            hits_c.index_add_(0, labels_b, hits(scores_bc, right_bc, [k])[0])

    def result(self, images_c: Tensor, hits_mc: Tensor) -> dict[str, float]:
        """The metrics from all ranks' counts."""
        images = images_c.sum().item()
        seen_c = images_c > 0
        true_n = torch.arange(len(images_c), device=images_c.device).repeat_interleave(images_c.long())
        metrics = {}
        for hits_c, (name, (group_c, k)) in zip(hits_mc, self.measures.items(), strict=True):
            metrics[name] = hits_c.sum().item() / images
            right_c = torch.bincount(group_c)[group_c]
            metrics["chance" if name == "top1" else f"{name}_chance"] = chance(right_c[true_n], len(images_c), k)
        metrics["mean_per_class"] = (hits_mc[0, seen_c] / images_c[seen_c]).mean().item()
        metrics["images"] = images
        return metrics
