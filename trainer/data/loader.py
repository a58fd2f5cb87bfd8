"""Training batches: endless, in the same order for any number of ranks and workers, starting at any position."""

import functools
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from model.tokenizer import Encoded
from trainer.config.schema import DataConfig
from trainer.data.batch import Batch
from trainer.data.evaluation import evaluation_batches as evaluation_batches  # the other loader
from trainer.data.limits import JUDGED_AFTER
from trainer.data.order.dealing import Rows, choose_streams, rows_of_reader, times_read
from trainer.data.order.mixture import MixedStream, Mixture, Reader, Source
from trainer.data.order.progress import DataProgress, add_counts, keep_longest
from trainer.data.order.reading import Pair
from trainer.data.order.stream import Stream, Taken
from trainer.data.shards.captions import CaptionRule
from trainer.data.shards.images import decode_image
from trainer.data.shards.opening import Remote
from trainer.data.shards.samples import Unusable
from trainer.data.tokenizer import Tokenizer
from trainer.data.transforms import least_side, random_crop
from trainer.data.truncation import TruncatedCaptions
from trainer.data.workers import WorkerIterator

CLASSES_KEPT = 4096  # whose prompts a reader keeps as tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Plan:
    """Everything a reader needs, as plain values, because it is sent to the workers."""

    mixture: Mixture
    tokenizer: Tokenizer
    image_size: int
    text_length: int
    seed: int
    batch_size: int
    streams: int
    rank: int
    world: int
    workers: int
    start: int  # pairs of each stream
    lengths: dict[str, int]
    short: dict[str, int]
    remote: Remote
    shuffle_buffer: int
    background: tuple[int, ...]
    crop_scale: tuple[float, ...]
    crop_ratio: tuple[float, ...]
    flip: bool


class TrainingLoader:
    """This rank's part of endless global batches.

    The rows of all ranks in rank order are the same for every number of ranks and workers that has the same `streams`.
    `read` and `bad` (by shard) count the samples read so far by this rank and the unusable ones among them, `left_out` those that
    their source does not want, `shards_read` and `bad_shards` (by name) the shards and those that ended early, `truncated` its
    captions that are too long; what several ranks read is counted by one of them; rank 0 has what was counted before a resume.
    `shards`: how many there are.
    """

    def __init__(self, plan: _Plan, in_workers: bool, before: DataProgress) -> None:
        self.streams = plan.streams
        self.mixture = plan.mixture
        self.read = before.read
        self.bad = dict(before.bad)
        self.shards = plan.mixture.shards
        self.left_out = before.left_out
        self.shards_read = before.shards
        self.bad_shards = dict(before.bad_shards)
        self._truncated = TruncatedCaptions(plan.text_length, before.truncated, warns=plan.rank == 0)
        self._lengths: dict[str, int] = {}  # learned since the last report, as is
        self._short: dict[str, int] = {}
        self._parts_per_batch = plan.workers
        read = functools.partial(_read_parts, plan)
        self._parts: Iterator[Batch] = WorkerIterator(read, plan.workers) if in_workers else read(0)

    def __iter__(self) -> "TrainingLoader":
        return self

    def __next__(self) -> Batch:
        batch = _join([next(self._parts) for _ in range(self._parts_per_batch)])
        self.read += batch.read
        self.left_out += batch.left_out
        add_counts(self.bad, batch.bad)
        self.shards_read += batch.shards
        add_counts(self.bad_shards, batch.bad_shards)
        self._truncated.add(batch.caption_tokens)
        keep_longest(self._lengths, batch.lengths)
        self._short |= batch.short
        return batch

    @property
    def truncated(self) -> int:
        """Captions so far that are too long for the model."""
        return self._truncated.count

    def report(self) -> DataProgress:
        """This rank's counters, and the shard lengths it learned since the last report: its part of what a checkpoint keeps."""
        lengths, self._lengths = self._lengths, {}
        short, self._short = self._short, {}
        return DataProgress(
            read=self.read,
            left_out=self.left_out,
            bad=dict(self.bad),
            lengths=lengths,
            truncated=self.truncated,
            shards=self.shards_read,
            bad_shards=dict(self.bad_shards),
            short=short,
        )

    def close(self) -> None:
        """Stop the workers; there are no batches after this."""
        if isinstance(self._parts, WorkerIterator):
            self._parts.close()
        self._parts = iter(())


def training_loader(
    data: DataConfig,
    *,
    shards: list[str] | Mixture,
    tokenizer: Tokenizer,
    image_size: int,
    text_length: int,
    batch_size: int,
    rank: int,
    world: int,
    seed: int,
    start: int = 0,
    progress: DataProgress | None = None,
) -> TrainingLoader:
    """Rank `rank`'s loader of global batches of `batch_size` pairs, of which each rank has `batch_size / world`.

    `shards`: those of the only source, or several sources and their shares.
    `start=n` continues as if all ranks had drawn n pairs, in batches of any size that `streams` divides; nothing before
    that is decoded. `progress` is what all ranks learned until then: its counters continue, and of the shards with known
    lengths only those that still have pairs are read. Raises UserError when data.streams does not fit the shards and the batch;
    drawing batches raises it for a shard that has become shorter, or when nothing can be used. Unusable samples are
    replaced: one without image or caption by the one after it, an image that cannot be decoded, or a caption in which the
    tokenizer knows nothing, by a copy of a later pair of its stream.
    """
    progress = progress or DataProgress()
    mixture = shards if isinstance(shards, Mixture) else Mixture.of_one(shards, CaptionRule.of(data))
    streams = check_reading(data, mixture.most_shards, batch_size, world)
    workers = _workers(data, batch_size, world)
    if rank == 0:
        for source in mixture.sources:
            _tell_sharing(source, mixture.streams_of(source, streams), streams, batch_size, world, workers)
    remote = Remote.of(data)
    plan = _Plan(
        mixture=mixture,
        tokenizer=tokenizer,
        image_size=image_size,
        text_length=text_length,
        seed=seed,
        batch_size=batch_size,
        streams=streams,
        rank=rank,
        world=world,
        workers=workers,
        start=start // streams,
        lengths=progress.lengths,
        short=progress.short,
        remote=remote,
        shuffle_buffer=data.shuffle_buffer,
        background=tuple(data.background),
        crop_scale=tuple(data.crop_scale),
        crop_ratio=tuple(data.crop_ratio),
        flip=data.flip,
    )
    return TrainingLoader(plan, data.workers > 0, progress if rank == 0 else DataProgress())


def check_reading(data: DataConfig, shards: int, batch_size: int, world: int) -> int:
    """The number of canonical streams that the shards are dealt into, for global batches of `batch_size` pairs.

    Raises UserError when data.streams does not fit the shards and the batch.
    """
    return choose_streams(shards, batch_size, world * _workers(data, batch_size, world), data.streams)


def _workers(data: DataConfig, batch_size: int, world: int) -> int:
    """Readers of a rank, each with a pair of its own at least."""
    return min(max(1, data.workers), batch_size // world)


def _tell_sharing(source: Source, own: int, streams: int, batch_size: int, world: int, workers: int) -> None:
    """One line when a source's shards, in `own` streams, are read more than once an epoch, and how not to."""
    readers, times = world * workers, times_read(batch_size, streams, world, workers, streams // own)
    if times == 1:
        return
    more = f"at least {readers} shards and a" if len(source.shards) < readers else "a"
    logger.info(
        "%s%d readers share %d streams of shards: each shard is read %.1f times an epoch, though decoded once; %s micro-batch "
        "that is a multiple of %d pairs would read each once",
        *(f"{source.name}: " if source.name else "", readers, own, times, more, readers),
    )


def _read_parts(plan: _Plan, worker: int) -> Iterator[Batch]:
    """The endless parts of the batches that one reader makes: its streams' pairs, stream after stream."""
    mine = rows_of_reader(plan.batch_size, plan.streams, plan.rank, plan.world, worker, plan.workers)
    known = (plan.lengths, plan.short)
    reader = Reader(plan.mixture, plan.seed, plan.streams, plan.shuffle_buffer, plan.start, known, plan.remote)
    streams = reader.open(mine)
    encode = _Encoder(plan.tokenizer, plan.text_length)
    while True:
        yield _part(plan, streams, mine, reader, encode)


def _part(plan: _Plan, streams: Sequence[Stream | MixedStream], mine: list[Rows], reader: Reader, encode: "_Encoder") -> Batch:
    made = [pair for stream, rows in zip(streams, mine, strict=True) for pair in _prepared(plan, stream, rows, encode)]
    ready = [pair for _, pair in made]
    batch = Batch(
        torch.stack([pair.image for pair in ready]), torch.stack([pair.tokens for pair in ready]), [p.id for p in ready]
    )
    batch.caption_tokens = [pair.caption_tokens for pair in ready]
    batch.sources = [source for source, _ in made]
    for stream in streams:
        tally = stream.tally.take()
        batch.read += tally.read
        batch.left_out += tally.left_out
        add_counts(batch.bad, tally.bad)
        batch.shards += tally.shards
        add_counts(batch.bad_shards, tally.bad_shards)
    batch.lengths, batch.short = reader.take_news()
    return batch


class _Encoder:
    """The tokenizer, which remembers what it made of the prompts of a class: they come again and again."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self._tokenizer, self._length = tokenizer, length
        self._of_class = lru_cache(CLASSES_KEPT)(self._encode)

    def __call__(self, captions: Sequence[str]) -> Encoded:
        return self._of_class(captions) if isinstance(captions, tuple) else self._encode(captions)

    def _encode(self, captions: Sequence[str]) -> Encoded:
        return self._tokenizer.encode(captions, self._length)


@dataclass(frozen=True)
class _Ready:
    """A pair as it goes into a batch. image: uint8 [3, H, W]; tokens: int64 [T]; caption_tokens: before the cut at T."""

    id: str
    image: Tensor
    tokens: Tensor
    caption_tokens: int


def _prepared(plan: _Plan, stream: Stream | MixedStream, rows: Rows, encode: _Encoder) -> Iterator[tuple[str, _Ready]]:
    """This reader's rows of the stream's next pairs for one batch, decoded, augmented and tokenized; with the name of the source.

    An unusable pair is replaced by a copy of a good pair of its source from after the batch: by the one as far behind it as the
    pair is from its beginning, or whole batches further on. So positions never depend on what can be decoded, a replacement not
    on other readers' rows, and a resumed run need not decode what it skips.
    """
    each = plan.batch_size // plan.streams
    taken = stream.take(each)
    if rows.first > 0:
        stream.tally.take()  # counted by the reader of the first row
    for one in taken[rows.first : rows.end]:
        try:
            ready = _ready(plan, one.pair, one.rng, encode)
        except Unusable as problem:
            if not one.pair.lost:  # otherwise it is counted with its shard
                stream.tally.note_bad(one.pair.shard, one.pair.id, problem)
            ready = _substitute(plan, one, encode)
        yield one.source, ready


def _substitute(plan: _Plan, bad: Taken, encode: _Encoder) -> _Ready:
    patience = bad.stream.patience(JUDGED_AFTER)
    for pair in bad.substitutes():
        try:
            return _ready(plan, pair, bad.rng, encode)
        except Unusable as problem:  # it is counted when its own turn comes
            patience.saw(pair.id, problem)
            patience.missed(pair.shard)
    raise AssertionError("a stream has no end")


def _ready(plan: _Plan, pair: Pair, rng: random.Random, encode: _Encoder) -> _Ready:
    """Raises Unusable before anything is drawn from `rng`, so that the draws do not depend on whether the verdict was known."""
    if pair.problem:
        raise Unusable(pair.problem)
    try:
        image = decode_image(pair.image, least_side(plan.image_size, plan.crop_scale, plan.crop_ratio), plan.background)
        texts = encode(pair.captions)
        usable = [index for index, known in enumerate(texts.known) if known]
        if not usable:
            raise Unusable(f"the tokenizer does not know any part of its caption '{pair.captions[0][:40]}'")
    except Unusable as problem:
        # It may be looked at many times before its turn: keep the verdict, not the bytes.
        pair.image, pair.problem = b"", str(problem)
        raise
    crop = random_crop(image, plan.image_size, plan.crop_scale, plan.crop_ratio, plan.flip, rng)
    if pair.chances is None:
        drawn = rng.choice(usable)
    else:
        (drawn,) = rng.choices(usable, [pair.chances[index] for index in usable])
    return _Ready(pair.id, crop, texts.ids[drawn], texts.counts[drawn])


def _join(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    batch = Batch(
        torch.cat([part.images for part in parts]),
        torch.cat([part.texts for part in parts]),
        [pair_id for part in parts for pair_id in part.ids],
        sum(part.read for part in parts),
        left_out=sum(part.left_out for part in parts),
        sources=[source for part in parts for source in part.sources],
        shards=sum(part.shards for part in parts),
        caption_tokens=[tokens for part in parts for tokens in part.caption_tokens],
    )
    for part in parts:
        add_counts(batch.bad, part.bad)
        add_counts(batch.bad_shards, part.bad_shards)
        keep_longest(batch.lengths, part.lengths)
        batch.short |= part.short
    return batch
