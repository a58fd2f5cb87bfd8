"""Evaluation batches: finite and complete, every image once, for any number of ranks and workers."""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor

from model.preprocess import REDUCING_GAP, centre_crop
from trainer.config.schema import DataConfig
from trainer.data.batch import EvaluationBatch
from trainer.data.limits import LeftOut
from trainer.data.shards.captions import CaptionRule, captions_of, classes_of, label_of, read_captions
from trainer.data.shards.images import decode_image, image_bytes
from trainer.data.shards.opening import Remote
from trainer.data.shards.samples import Sample, Unusable, read_samples
from trainer.data.workers import WorkerIterator
from trainer.errors import UserError

PARCEL_ROWS = 64  # rows a worker sends at once
PARCEL_LABELS = 4096  # the same without images

Crop = Callable[[Image.Image], Tensor]
"""An RGB image at its full size as uint8 `[3, size, size]`; sent to the workers, so it can be pickled."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Plan:
    """Everything a reader needs, as plain values, because it is sent to the workers."""

    shards: list[str]
    image_size: int
    captions: CaptionRule
    background: tuple[int, ...]
    parcel_rows: int
    remote: Remote
    only: frozenset[str] | None = None  # ids of the samples to read; None: all
    labels_alone: bool = False  # leave the images alone
    crop: Crop | None = None  # None: centre_crop
    first_reader: int = 0  # of this rank
    readers: int = 1  # of all ranks


@dataclass
class _Rows:
    """Some images of one reader, and what was left out on the way."""

    images: list[Tensor] = field(default_factory=list)  # uint8 [3, H, W] each; one [n, 3, H, W] on its way between processes
    labels: list[int] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    classes: list[list[int] | None] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)


def evaluation_batches(
    data: DataConfig,
    *,
    shards: list[str],
    image_size: int,
    batch_size: int,
    rank: int,
    world: int,
    any_rank: Callable[[bool], bool] = bool,
    workers: int | None = None,
    left_out: LeftOut | None = None,
    only: frozenset[str] | None = None,
    crop: Crop | None = None,
) -> Iterator[EvaluationBatch]:
    """This rank's share of all images of the shards, in batches of `batch_size` rows; the last one is padded with invalid rows.

    `any_rank(flag)` says whether the flag is set on any rank; it is called once before each batch and once at the end, on
    all ranks equally often, so that all ranks see the same number of batches. `workers`: null for data.workers. A sample
    needs an image and a caption or a class; others are left out, and so is everything after a break in a shard: they
    are counted in `left_out`, complete at the end, and logged. `only`: the ids of the samples to read; None: all. `crop`: what
    makes an image square; None: model.preprocess.centre_crop.
    Raises UserError when `workers` is negative or `data.background` is not a colour.
    """
    plan = _Plan(
        shards=list(shards),
        image_size=image_size,
        captions=CaptionRule.of(data),
        background=tuple(data.background),
        parcel_rows=min(batch_size, PARCEL_ROWS),
        remote=Remote.of(data),
        only=only,
        crop=crop,
    )
    with _reading(plan, rank, world, data.workers if workers is None else workers) as rows:
        batches = _batches(rows, batch_size, image_size, left_out if left_out is not None else LeftOut())
        while True:
            batch = next(batches, None)
            if not any_rank(batch is not None):
                return
            yield batch or _filled(_Rows(), batch_size, image_size)


def read_labels(data: DataConfig, *, shards: list[str], rank: int, world: int, left_out: LeftOut) -> Iterator[tuple[str, int]]:
    """The id and the class index (-1: none) of every sample of this rank's share; images are not decoded.

    What cannot be read is counted in `left_out`, complete at the end, and logged.
    """
    plan = _Plan(
        shards=list(shards),
        image_size=0,
        captions=CaptionRule.of(data),
        background=tuple(data.background),
        parcel_rows=PARCEL_LABELS,
        remote=Remote.of(data),
        labels_alone=True,
    )
    with _reading(plan, rank, world, data.workers) as parcels:
        for parcel in parcels:
            left_out.add(parcel.left_out)
            yield from zip(parcel.ids, parcel.labels, strict=True)
    _tell(left_out)


@contextmanager
def _reading(plan: _Plan, rank: int, world: int, workers: int) -> Iterator[Iterator[_Rows]]:
    """What this rank's readers send, in `workers` processes or, with 0, in this one."""
    if workers < 0:
        raise UserError(f"data.workers={workers} must be at least 0 (0 reads in the training process)")
    per_rank = max(1, workers)
    plan = replace(plan, first_reader=rank * per_rank, readers=world * per_rank)
    read = functools.partial(_read_rows, plan)
    rows: Iterator[_Rows] = WorkerIterator(read, workers) if workers else read(0)
    try:
        yield rows
    finally:
        if isinstance(rows, WorkerIterator):
            rows.close()


def _batches(parcels: Iterator[_Rows], batch_size: int, image_size: int, left_out: LeftOut) -> Iterator[EvaluationBatch]:
    waiting = _Rows()
    for parcel in parcels:
        _append(waiting, parcel)
        left_out.add(parcel.left_out)
        while len(waiting.ids) >= batch_size:
            yield _filled(_cut(waiting, batch_size), batch_size, image_size)
    if waiting.ids:
        yield _filled(waiting, batch_size, image_size)
    _tell(left_out)


def _tell(left_out: LeftOut) -> None:
    for line in left_out.told():
        logger.warning("evaluation: %s", line)


def _read_rows(plan: _Plan, worker: int) -> Iterator[_Rows]:
    rows = _Rows()
    for sample in _share(plan, plan.first_reader + worker):
        if sample.broken:
            rows.left_out.bad_shards.setdefault(sample.shard, sample.broken)
            continue
        if plan.only is not None and sample.id not in plan.only:
            continue
        rows.left_out.read += 1
        try:
            _add_sample(rows, sample, plan)
        except Unusable as problem:
            rows.left_out.note_bad(sample.shard, sample.id, problem)
        if len(rows.ids) == plan.parcel_rows:
            yield _packed(rows)
            rows = _Rows()
    yield _packed(rows)


def _share(plan: _Plan, reader: int) -> Iterator[Sample]:
    """Whole shards while there is one for every reader; otherwise every reader reads all and keeps every readers-th sample."""
    if len(plan.shards) >= plan.readers:
        for shard in plan.shards[reader :: plan.readers]:
            yield from read_samples(shard, plan.remote)
        return
    samples = (sample for shard in plan.shards for sample in read_samples(shard, plan.remote))
    yield from (sample for index, sample in enumerate(samples) if sample.broken or index % plan.readers == reader)


def _add_sample(rows: _Rows, sample: Sample, plan: _Plan) -> None:
    label = label_of(sample)
    if plan.labels_alone:
        rows.labels.append(label)
        rows.ids.append(sample.id)
        return
    classes = classes_of(sample)
    # A sample with a class needs no caption.
    needs_caption = label < 0 and classes is None
    captions = read_captions(sample, plan.captions) if needs_caption else captions_of(sample, plan.captions)
    rows.images.append(_read_image(image_bytes(sample), plan))
    rows.labels.append(label)
    rows.captions.append(captions)
    rows.ids.append(sample.id)
    rows.classes.append(classes)


def _read_image(content: bytes, plan: _Plan) -> Tensor:
    """uint8 `[3, H, W]`"""
    if plan.crop is not None:
        return plan.crop(decode_image(content, 0, plan.background))
    return centre_crop(decode_image(content, round(REDUCING_GAP * plan.image_size), plan.background), plan.image_size)


def _packed(rows: _Rows) -> _Rows:
    # Each tensor sent between processes takes a file descriptor.
    return replace(rows, images=[torch.stack(rows.images)] if rows.images else [])


def _append(rows: _Rows, more: _Rows) -> None:
    rows.images += [image for block in more.images for image in block]
    rows.labels += more.labels
    rows.captions += more.captions
    rows.ids += more.ids
    rows.classes += more.classes


def _cut(rows: _Rows, count: int) -> _Rows:
    """Remove and return the first `count` rows."""
    columns = (rows.images, rows.labels, rows.captions, rows.ids, rows.classes)
    first = _Rows(*(column[:count] for column in columns))  # type: ignore[arg-type]
    for column in columns:
        del column[:count]
    return first


def _filled(rows: _Rows, batch_size: int, image_size: int) -> EvaluationBatch:
    missing = batch_size - len(rows.ids)
    blank = torch.zeros(3, image_size, image_size, dtype=torch.uint8)
    return EvaluationBatch(
        images=torch.stack(rows.images + [blank] * missing),
        valid=torch.tensor([True] * len(rows.ids) + [False] * missing),
        labels=torch.tensor(rows.labels + [-1] * missing),
        captions=rows.captions + [[] for _ in range(missing)],
        ids=rows.ids + [""] * missing,
        classes=rows.classes + [None] * missing,
    )
