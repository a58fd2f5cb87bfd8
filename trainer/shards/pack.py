"""Converted samples into shards, one after the other; each is in place and written down before the next one begins."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from trainer.data.shards.write import ShardWriter
from trainer.errors import UserError
from trainer.shards.record import Record, Records, kinds_of
from trainer.shards.unfit import Bad
from trainer.shards.work import Outcome, Work

HOPELESS = 1000  # samples that cannot be used, before any that can: something is wrong with all of them

Watch = Callable[[Outcome], None]
"""Told of every sample."""


@dataclass(frozen=True)
class Shards:
    """Where shards go, what they are called and when they are full.

    pairs: None for no limit; bytes: of the samples, None for no limit; a larger sample has a shard of its own.
    """

    folder: Path
    prefix: str = ""
    pairs: int | None = None
    bytes: int | None = None

    def path(self, part: str, number: int) -> Path:
        """`train-000012.tar` in the folder, or `photos-train-000012.tar`."""
        return self.folder / f"{self.prefix}{'-' * bool(self.prefix)}{part}-{number:06}.tar"


def pack(work: Work, records: Records, shards: Shards, workers: int, watch: Watch, shuffled: bool = False) -> None:
    """Write all shards of which there are no records yet.

    Raises UserError if no sample can be used, after HOPELESS of them if they come `shuffled`, and OSError for a full disk.
    """
    for part, items in work.plan.parts.items():
        done = records.of(part)
        rest = range(done[-1].next if done else items.start, items.stop)
        if not rest:
            continue
        number = sum(record.shard is not None for record in done)
        packer = _Packer(shards, records, Record(part, next=rest.start), number)
        with closing(work.outcomes(rest, workers)) as outcomes, packer.open:
            for outcome in outcomes:
                packer.add(outcome)
                watch(outcome)
                if shuffled and packer.is_hopeless():
                    raise _hopeless(packer.bad)
            packer.finish()
    if not records.pairs:
        raise _hopeless(records.bad)


class _Packer:
    """Fills shards. An error within `with open` removes the one that is being written."""

    def __init__(self, shards: Shards, records: Records, first: Record, number: int) -> None:
        self.open = ExitStack()
        self._shards = shards
        self._records = records
        self._record = first  # of the shard that is being written, if any
        self._number = number
        self._writer: ShardWriter | None = None

    def add(self, outcome: Outcome) -> None:
        """The next sample."""
        if isinstance(outcome, Bad):
            self._record.bad.append(outcome)
            self._record.next += 1
            return
        if self._writer is not None and self._is_full(len(outcome.block)):
            self.finish()
        path = self._shards.path(self._record.part, self._number)
        if self._writer is None:
            self._writer = self.open.enter_context(ShardWriter(path))
        self._writer.write(outcome.block)
        self._record.shard = path.name
        self._record.pairs += 1
        self._record.captions += outcome.captions
        self._record.several += outcome.captions > 1
        self._record.resized += outcome.resized
        self._record.next += 1
        if self._record.pairs == self._shards.pairs:
            self.finish()

    @property
    def bad(self) -> list[Bad]:
        """What was left out since the last shard."""
        return self._record.bad

    def is_hopeless(self) -> bool:
        """Whether the first HOPELESS samples were all left out."""
        return len(self.bad) == HOPELESS and not self._record.pairs and not self._records.all

    def finish(self) -> None:
        """Put the shard in place, and write down what it and the samples left out since the last one account for."""
        done = self._record
        if self._writer is not None:
            self.open.close()
            done.bytes = self._shards.path(done.part, self._number).stat().st_size
            self._writer = None
            self._number += 1
        elif not done.bad:
            return
        self._records.add(done)
        self._record = Record(done.part, next=done.next)

    def _is_full(self, more: int) -> bool:
        assert self._writer is not None
        return self._shards.bytes is not None and self._writer.size + more > self._shards.bytes


def _hopeless(bad: list[Bad]) -> UserError:
    [(kind, _)] = kinds_of(bad).most_common(1)
    example = next(entry for entry in bad if entry.kind == kind)
    first = "first " * (len(bad) == HOPELESS)
    none = f"none of the {first}{len(bad)} samples can be used" if len(bad) > 1 else "the only sample cannot be used"
    return UserError(f"{none}: {kind}; for example, {example.key}: {example.why}")
