"""What a field of a configuration means and what it may be, declared beside it; checks, documentation and help read it there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COUNTS = {2: "two", 3: "three"}


@dataclass(frozen=True)
class Option:
    """A field's meaning, and the values that it takes whatever the other fields are. None is always let through."""

    meaning: str
    choices: tuple[Any, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    length: int | None = None
    """Entries of a list; the bounds are for each of them."""
    ascending: bool = False
    """Whether no entry of the list may be smaller than the one before."""
    filled: bool = False
    """Whether a text must not be empty."""
    hint: str = ""
    """What helps somebody whose value was refused, after the allowed values."""
    path: bool = False
    """Whether a text is a path, or a shard pattern: `trainer.config.paths` expands it."""
    identity: bool = False
    """Whether weights that were trained with one value are another function under another."""
    prepares_input: bool = False
    """Whether weights expect pictures that were prepared with the value of their training."""

    def allows(self, value: Any) -> bool:
        """Whether a value can be. Numbers must be finite, those in a list too."""
        if value is None:
            return True
        if self.choices:
            return value in self.choices
        if isinstance(value, (list, tuple)):
            if self.length is not None and len(value) != self.length:
                return False
            return all(map(self.allows, value)) and not (self.ascending and sorted(value) != list(value))
        if isinstance(value, str):
            return bool(value.strip()) or not self.filled
        if isinstance(value, (int, float)):
            return math.isfinite(value) and self._is_within(value)
        return True

    def _is_within(self, number: float) -> bool:
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    @property
    def allowed(self) -> str:
        """The values that can be, in words: `none, blocks or offload`, `above 0 and below 1`; empty when all can."""
        if self.choices:
            *others, last = map(str, self.choices)
            return f"{', '.join(others)} or {last}" if others else last
        lower = f"at least {self.at_least:g}" if self.at_least is not None else ""
        lower = f"above {self.above:g}" if self.above is not None else lower
        upper = f"at most {self.at_most:.10g}" if self.at_most is not None else ""
        upper = f"below {self.below:g}" if self.below is not None else upper
        bounds = " and ".join(filter(None, (lower, upper)))
        if self.length is not None:
            numbers = f"{COUNTS.get(self.length, self.length)} numbers"
            return ", ".join(filter(None, (numbers, "the smaller first" if self.ascending else "", bounds and f"each {bounds}")))
        return bounds or ("not empty" if self.filled else "")


def option(default: Any, meaning: str, **limits: Any) -> Any:
    """A dataclass field with its default and its `Option`; the limits are the fields of that."""
    metadata: Mapping[str, Any] = {"option": Option(meaning, **limits)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
