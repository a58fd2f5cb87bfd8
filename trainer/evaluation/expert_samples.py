"""The samples on which experts are looked at: a bounded number of a run's own evaluation pairs and classified images."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.config.schema import Config
from trainer.data.batch import EvaluationBatch
from trainer.data.evaluation import evaluation_batches
from trainer.data.shards.patterns import list_shards
from trainer.errors import UserError
from trainer.evaluation.classification_set import ClassificationSet, read_classification_set
from trainer.evaluation.suite import classification_sets, retrieval_key, retrieval_shards
from trainer.evaluation.wording import Wordings

CAPTIONS = 5
"""Most captions of one image that are used."""
PROMPTS = 4
"""Prompts that are embedded for a sample at most: a thousand classes have fewer templates here than in an evaluation."""
ROWS = 64


@dataclass(frozen=True)
class Pairs:
    """Images with their captions. images: uint8 `[n, 3, H, W]`; ids: `shard/key`; owner_t: int64, the image of each caption."""

    images: Tensor
    ids: list[str]
    captions: list[str]
    owner_t: Tensor


@dataclass(frozen=True)
class Classified:
    """Images of a classification set, as many of every class. images, ids: as of Pairs; labels: int64 `[n]`."""

    name: str
    images: Tensor
    ids: list[str]
    labels: Tensor
    classes: ClassificationSet


@dataclass(frozen=True)
class Shown:
    """Images and texts, and what they are. images: uint8 `[n, 3, H, W]`; ids: of the images, `shard/key`."""

    what: str
    images: Tensor
    ids: list[str]
    texts: list[str]


@dataclass(frozen=True)
class ExpertSamples:
    """What there is to look at. pairs: None where the configuration names no pairs."""

    pairs: Pairs | None
    classified: list[Classified]

    def shown(self) -> Shown:
        """What experts are shown with: the pairs, else the first classification set with its prompts."""
        if self.pairs is not None:
            return Shown("images with captions", self.pairs.images, self.pairs.ids, self.pairs.captions)
        first = self.classified[0]
        return Shown(f"classification set {first.name}", first.images, first.ids, first.classes.prompts())


def read_samples(config: Config, samples: int) -> ExpertSamples:
    """The first `samples` captioned images of the run's evaluation pairs, and about as many of each classification set.

    Of a classification set, the first images of every class, equally many, and at most PROMPTS * samples prompts. One process.
    Raises UserError for data that cannot be used, and when the configuration names none.
    """
    shards = retrieval_shards(config)
    found = ExpertSamples(
        None if shards is None else read_pairs(config, list_shards(shards, retrieval_key(config)), samples),
        [read_classified(config, name, folder, samples) for name, folder in classification_sets(config.eval.zeroshot).items()],
    )
    if found.pairs is None and not found.classified:
        raise UserError("nothing to look at the experts with: set data.val, eval.retrieval or eval.zeroshot")
    return found


def _batches(config: Config, shards: list[str]) -> Iterator[EvaluationBatch]:
    # Read in this process, so that the first samples are the same every time.
    return evaluation_batches(
        config.data, shards=shards, image_size=config.model.image_size, batch_size=ROWS, rank=0, world=1, workers=0
    )


def read_pairs(config: Config, shards: list[str], samples: int, captioned: bool = True) -> Pairs:
    """The first `samples` images of some shards and their captions; captioned: leave out images without one.

    Raises UserError when there are none.
    """
    images: list[Tensor] = []
    ids, captions, owners = [], [], []
    for batch in _batches(config, shards):
        for image, of_image, name in zip(batch.images, batch.captions, batch.ids, strict=True):
            if name and (of_image or not captioned) and len(images) < samples:
                captions += of_image[:CAPTIONS]
                owners += [len(images)] * len(of_image[:CAPTIONS])
                images.append(image)
                ids.append(name)
        if len(images) == samples:
            break
    if not images:
        raise UserError(f"{retrieval_key(config)}: no image{' with a caption' if captioned else ''} there")
    return Pairs(torch.stack(images), ids, captions, torch.tensor(owners, dtype=torch.int64))


def read_classified(config: Config, name: str, folder: str, samples: int) -> Classified:
    """About `samples` images of a classification set, equally many of every class, and at most PROMPTS * samples prompts.

    Raises UserError for a set that cannot be used.
    """
    dataset = read_classification_set(folder, wording=Wordings(config.eval).of(name))
    classes = len(dataset.classes)
    each = max(1, samples // classes)
    images: list[Tensor] = []
    ids: list[str] = []
    labels: list[int] = []
    seen: Counter[int] = Counter()
    for batch in _batches(config, dataset.shards):
        rows = zip(batch.images, batch.labels.tolist(), batch.valid.tolist(), batch.ids, strict=True)
        for image, label, valid, name_of_image in rows:
            if valid and 0 <= label < classes and seen[label] < each:
                seen[label] += 1
                images.append(image)
                ids.append(name_of_image)
                labels.append(label)
        if len(images) == each * classes:
            break
    if not images:
        raise UserError(f"eval.zeroshot: the test shards of {folder} contain no usable image with its class index in .cls")
    templates = dataset.templates[: max(1, PROMPTS * samples // classes)]
    return Classified(name, torch.stack(images), ids, torch.tensor(labels), replace(dataset, templates=templates))
