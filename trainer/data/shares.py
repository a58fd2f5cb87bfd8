"""From weights and epochs to the shares of the sources in a run's pairs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from trainer.config.sources import WHAT, SourceOptions
from trainer.data.order.mixture import Phase
from trainer.errors import UserError

NEAR = 0.01  # epochs that come out this close to what was asked for need no word


@dataclass(frozen=True)
class Budget:
    """The pairs of a run: those of all its steps, and those that were drawn before."""

    steps: int
    batch: int
    drawn: int = 0

    @property
    def total(self) -> int:
        """In the whole run."""
        return self.steps * self.batch

    @property
    def left(self) -> int:
        """To be drawn from here on."""
        return max(0, self.total - self.drawn)


def asked_of(options: Sequence[SourceOptions], budget: Budget) -> dict[str, Any]:
    """What the shares depend on, as plain values: a resumed run with the same keeps its shares."""
    if [each.name for each in options] == [""]:
        return {}
    asked: dict[str, Any] = {
        each.name: {"weight": each.weight} if each.epochs is None else {"epochs": each.epochs, "pairs": each.pairs}
        for each in options
    }
    if any(each.epochs is not None for each in options):
        asked["(run)"] = {"pairs": budget.total}
    return asked


def work_out(
    options: Sequence[SourceOptions], sizes: Mapping[str, int | None], drawn: Mapping[str, int], budget: Budget
) -> dict[str, int]:
    """The share of each source in the pairs that are left, as whole numbers in relation to one another.

    A source with epochs gets the pairs of its passes (`sizes`: pairs in one) that are not `drawn` yet; those with weights share
    what is left. If all have epochs, these are their shares, whatever the run's length. Raises UserError when nothing is left.
    """
    passes = {each.name: _pairs_of_passes(each, sizes.get(each.name), drawn.get(each.name, 0)) for each in options if each.epochs}
    weights = {each.name: Fraction(str(each.weight)) for each in options if not each.epochs}
    if not weights:
        return (
            _whole({name: Fraction(count) for name, count in passes.items()}) if any(passes.values()) else _fresh(options, sizes)
        )
    rest = budget.left - sum(passes.values())
    if rest <= 0 < budget.left:
        steps = budget.steps + -rest // budget.batch + 1
        raise UserError(
            f"{WHAT}: the epochs of {', '.join(passes)} take {sum(passes.values()):,} pairs, but the run has {budget.left:,}: "
            f"nothing remains for {', '.join(weights)}: ask for fewer epochs, or for train.steps={steps} or more"
        )
    shares = {name: weight / sum(weights.values()) * max(rest, 1) for name, weight in weights.items()}
    return _whole({each.name: Fraction(passes[each.name] if each.name in passes else shares[each.name]) for each in options})


def _pairs_of_passes(options: SourceOptions, size: int | None, drawn: int) -> int:
    assert options.epochs is not None
    if size is None:
        raise UserError(
            f"{options.what}.epochs={options.epochs:g}: how many pairs remote shards have is unknown; set {options.what}.pairs, "
            f"or weight instead of epochs"
        )
    return max(0, round(options.epochs * size) - drawn)


def _fresh(options: Sequence[SourceOptions], sizes: Mapping[str, int | None]) -> dict[str, int]:
    """The shares of a run's beginning, for one that goes on after all passes are done."""
    return _whole({each.name: Fraction(str(each.epochs)) * (sizes[each.name] or 1) for each in options})


def _whole(shares: Mapping[str, Fraction]) -> dict[str, int]:
    """Shares as the smallest whole numbers in the same relation."""
    common = math.lcm(*(share.denominator for share in shares.values()))
    numbers = {name: int(share * common) for name, share in shares.items()}
    divisor = math.gcd(*numbers.values()) or 1
    return {name: number // divisor for name, number in numbers.items()}


def other_epochs(options: Sequence[SourceOptions], sizes: Mapping[str, int | None], budget: Budget) -> str:
    """What to say when all sources have epochs that do not fill the run: how often each comes instead; "" if there is nothing."""
    if not all(each.epochs for each in options) or not budget.left:
        return ""
    wanted = max(1, sum(round((each.epochs or 0) * (sizes[each.name] or 0)) for each in options))
    total = budget.total
    if abs(total / wanted - 1) <= NEAR:
        return ""
    steps = max(1, round(wanted / budget.batch))
    times = ", ".join(f"{each.name} {(each.epochs or 0) * total / wanted:.3g} instead of {each.epochs:g}" for each in options)
    return f"the epochs of all sources take {wanted:,} pairs, and the run has {total:,}: {times}; train.steps={steps} would fit"


def changes(before: Phase, after: Phase) -> str:
    """`cc12m 66.7% -> 50.0%, coco 33.3% -> 50.0%`, those whose share changes."""
    names = {name: None for phase in (before, after) for name in phase.parts}
    told = [f"{name or 'the unnamed source'} {before.share(name):.1%} -> {after.share(name):.1%}" for name in names]
    return ", ".join(line for line, name in zip(told, names, strict=True) if before.share(name) != after.share(name))
