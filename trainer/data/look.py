"""A look at data before a run: a few samples of a few shards, opened, read and decoded.

This is cheap for any number of shards: problems with all of them show here, problems with some of them are counted while they
are read.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

from trainer.config.schema import DataConfig
from trainer.data.shards.captions import CaptionRule, TooSmall, captions_of, classes_of, label_of, read_captions, require_pair
from trainer.data.shards.images import decode_image, image_bytes
from trainer.data.shards.opening import Remote, is_remote
from trainer.data.shards.samples import Sample, Unusable, read_samples
from trainer.errors import UserError

LOCAL_SHARDS, REMOTE_SHARDS = 8, 2  # looked at, evenly spread over the list
SAMPLES = 4  # of each
REMOTE_TRIES = 2

Judge = Callable[[Sample, DataConfig], int]
"""The number of captions of a sample, read as the configuration says. Raises Unusable."""


@dataclass
class Look:
    """What was found. captions: of the usable samples; broken: why, by shard; problems, left_out: an example's id by reason."""

    shards: int = 0
    samples: int = 0
    usable: int = 0
    captions: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def check_readable(self, what: str) -> None:
        """Raise UserError when the opened shards gave no sample at all, and one of them says why."""
        if self.broken and not self.samples:
            shard, problem = next(iter(self.broken.items()))
            raise UserError(f"{what}: {_all_of(len(self.broken), 'shard')} opened cannot be read; {shard}: {problem}")

    def check_usable(self, what: str) -> None:
        """Raise UserError when none of the samples can be used."""
        self.check_readable(what)
        if self.samples and not self.usable:
            reason, sample = next(iter((self.problems | self.left_out).items()))
            raise UserError(f"{what}: {_all_of(self.samples, 'sample')} looked at cannot be used; {sample}: {reason}")

    def told(self) -> str:
        """`32 captions in 32 of 32 samples of 8 shards looked at`"""
        captions = f"{self.captions} captions in " if self.captions else ""
        shards = f"{self.shards} shard{'s' * (self.shards != 1)}"
        return f"{captions}{self.usable} of {self.samples} samples of {shards} looked at"

    def doubts(self) -> str | None:
        """Which samples that were looked at could not be used, if any; that a shard ends early was reported when it was read."""
        return "; ".join(f"{sample}: {reason}" for reason, sample in self.problems.items()) or None


def look_at(shards: Sequence[str], data: DataConfig, judge: Judge) -> Look:
    """Judge the first samples of some shards. Raises nothing: the checks are methods of `Look`."""
    look = Look()
    remote = Remote(data.remote_timeout, min(REMOTE_TRIES, data.remote_tries))
    for shard in spread(shards):
        look.shards += 1
        with closing(read_samples(shard, remote)) as samples:
            for sample in islice(samples, SAMPLES):
                if sample.broken:
                    look.broken[shard] = sample.broken
                    continue
                look.samples += 1
                try:
                    look.captions += judge(sample, data)
                    look.usable += 1
                except Unusable as problem:
                    found = look.left_out if isinstance(problem, TooSmall) else look.problems
                    found.setdefault(str(problem), sample.id)
    return look


def judge_pair(sample: Sample, data: DataConfig, rule: CaptionRule | None = None) -> int:
    """A sample to train on: an image and a caption. rule: of its source, None: that of all."""
    image, captions, _ = require_pair(sample, rule or CaptionRule.of(data))
    decode_image(image)
    return len(captions)


def judge_image(sample: Sample, data: DataConfig) -> int:
    """A sample to evaluate on: an image and a caption, a class or several."""
    rule = CaptionRule.of(data)
    needs_caption = label_of(sample) < 0 and classes_of(sample) is None
    captions = read_captions(sample, rule) if needs_caption else captions_of(sample, rule)
    decode_image(image_bytes(sample))
    return len(captions)


def judge_labelled(sample: Sample, data: DataConfig) -> int:
    """A sample of a labelled set: an image and a class."""
    if label_of(sample) < 0:
        raise Unusable("it has no .cls with its class index")
    return judge_image(sample, data)


def spread(shards: Sequence[str]) -> list[str]:
    """The first shard, the last one, and some between them."""
    most = REMOTE_SHARDS if any(map(is_remote, shards)) else LOCAL_SHARDS
    if len(shards) <= most:
        return list(shards)
    return [shards[round(number * (len(shards) - 1) / (most - 1))] for number in range(most)]


def _all_of(count: int, what: str) -> str:
    return f"all {count} {what}s" if count > 1 else f"the only {what}"
