"""The meaning and the limits of a configuration field, declared with it and used for checks, documentation and help."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COUNTS = {2: "two", 3: "three"}


@dataclass(frozen=True)
class Option:
    """A field's meaning, and its allowed values regardless of the other fields. None always passes."""

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
    """Whether text must not be empty."""
    hint: str = ""
    """Help for a user whose value was refused, printed after the allowed values."""
    path: bool = False
    """Whether text is a path or a shard pattern, which `trainer.config.paths` expands."""
    identity: bool = False
    """Whether the same weights compute a different function with another value."""
    prepares_input: bool = False
    """Whether the weights expect images prepared with the value used in training."""

    def allows(self, value: Any) -> bool:
        """Whether a value is allowed. Numbers must be finite, also in a list."""
        if value is None:
            return True
        if self.choices:
            return value in self.choices
        if isinstance(value, dict):
            return all(map(self.allows, value.values()))
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
        """The allowed values in words: `none, blocks or offload`, `above 0 and below 1`; empty if all are."""
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
            return ", ".join(
                filter(None, (numbers, "the smaller one first" if self.ascending else "", bounds and f"each {bounds}"))
            )
        return bounds or ("not empty" if self.filled else "")


def option(default: Any, meaning: str, **limits: Any) -> Any:
    """A dataclass field with its default and its `Option`, whose other fields are `limits`."""
    metadata: Mapping[str, Any] = {"option": Option(meaning, **limits)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
