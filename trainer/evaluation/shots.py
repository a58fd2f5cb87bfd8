"""Which training samples of each class a few-shot probe learns from.

They are drawn by a hash of the seed and the sample's name, so that they are the same for any number of processes and workers,
any batch size, and wherever the shards are.
"""

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os.path import commonprefix

from trainer.data.limits import LeftOut

SHOTS = (1, 5, 10, 25)
SEEDS = 3
SPARES = 3  # more candidates than shots, for those that turn out to be unusable
AT_ONCE = 4096  # names of a class that are kept before all but the candidates are forgotten


@dataclass(frozen=True)
class Candidates:
    """The ids from which every draw of a set chooses, by class index (ascending), and what could not be read on the way."""

    samples: dict[int, list[str]]
    left_out: LeftOut


class Draw:
    """Draws from the samples of some shards."""

    def __init__(self, shards: Sequence[str]) -> None:
        # Not commonpath, which knows no URLs; to the last slash, what they have in common is a folder too.
        self._folder = commonprefix(list(shards)).rfind("/") + 1  # noqa: RUF071

    def candidates(self, samples: Iterable[tuple[str, int]]) -> dict[int, list[str]]:
        """From ids and class indices to the ids of each class from which `choose` chooses for any seed.

        Those of several processes may be joined and given again: the result is that of all samples at once.
        """
        found: dict[int, set[str]] = {}
        for sample, label in samples:
            of_class = found.setdefault(label, set())
            of_class.add(sample)
            if len(of_class) >= AT_ONCE:
                found[label] = self._first(of_class)
        return {label: sorted(self._first(found[label])) for label in sorted(found)}

    def choose(self, samples: Iterable[str], shots: int, seed: int) -> list[str]:
        """The `shots` samples of a class that come first with this seed, in that order."""
        return heapq.nsmallest(shots, samples, key=lambda sample: self.place(sample, seed))

    def place(self, sample: str, seed: int = 0) -> tuple[bytes, str]:
        """Where a sample stands among all; the first ones are drawn."""
        name = f"{seed}/{sample[self._folder :]}"
        return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), sample

    def _first(self, samples: Iterable[str]) -> set[str]:
        return {sample for seed in range(SEEDS) for sample in self.choose(samples, max(SHOTS) + SPARES, seed)}
