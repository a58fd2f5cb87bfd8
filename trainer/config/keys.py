"""Every key of the configuration with what its field declares, and the check of each value alone."""

import math
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, get_args

from model.option import Option
from trainer.config.schema import Config
from trainer.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Key:
    """A key such as `train.steps`: its type as written in the schema, its default, and its option."""

    name: str
    kind: Any
    default: Any
    option: Option

    @property
    def optional(self) -> bool:
        """Whether it can be null."""
        return self.kind is Any or type(None) in get_args(self.kind)

    def refusal(self, value: Any) -> str | None:
        """The line that says why a value is not allowed; None if it is."""
        if self.option.allows(value):
            return None
        shown = f"{self.name}={list(value) if isinstance(value, tuple) else value}"
        hint = f" ({self.option.hint})" if self.option.hint else ""
        if self.option.choices:
            near = did_you_mean(str(value), map(str, self.option.choices))
            return f"{shown}: choose {self.option.allowed}{near}{hint}"
        if self.option.allowed == "not empty":
            return f"{self.name} must not be empty{hint}"
        finite = "" if _is_finite(value) else "a finite number" if not self.option.allowed else " and finite"
        return f"{shown} must be {self.option.allowed}{finite}{hint}"


def _is_finite(value: Any) -> bool:
    numbers = value if isinstance(value, (list, tuple)) else [value]
    return all(not isinstance(number, float) or math.isfinite(number) for number in numbers)


def keys_of(cls: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a dataclass and of those in it, with its dotted name."""
    for entry in fields(cls):
        if is_dataclass(entry.type):
            yield from keys_of(entry.type, f"{prefix}{entry.name}.")  # type: ignore[arg-type]
        else:
            yield Key(prefix + entry.name, entry.type, _default(entry), entry.metadata.get("option", Option("")))


def _default(entry: Field[Any]) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


KEYS = {key.name: key for key in keys_of(Config)}
"""Every key that is not a section, in the order of the schema."""


def value_of(config: Any, key: str) -> Any:
    """The value of a dotted key in a configuration."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def wrong_values(config: Config) -> dict[str, str]:
    """By key, a line for each value that is not allowed, regardless of the others."""
    refusals = {name: key.refusal(value_of(config, name)) for name, key in KEYS.items()}
    return {name: line for name, line in refusals.items() if line is not None}


def check_value(key: str, value: Any) -> None:
    """Raise UserError when a value is not allowed for a key."""
    line = KEYS[key].refusal(value)
    if line is not None:
        raise UserError(line)
