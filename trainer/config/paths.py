"""Every path of a configuration is read by one rule (model.paths), once, right after composing."""

from collections.abc import Mapping
from typing import Any

from model.paths import expand, expand_local
from trainer.config.keys import KEYS, value_of
from trainer.config.schema import Config


def expand_paths(config: Config) -> None:
    """Replace each path of the configuration by what it means here; `pipe:` commands and URLs stay.

    A default stays as it is: written into config.yaml, `~/.cache/limoe` must be everyone's own. Raises UserError for a user or
    a variable of the environment that there is not, and for a URL where only a path will do.
    """
    for key in KEYS.values():
        value = value_of(config, key.name)
        if key.option.path and value != key.default:
            section, _, leaf = key.name.rpartition(".")
            # Those that name shards may be anything; the others are each one path.
            expanded = _expanded(value, key.name) if key.kind is Any else value and expand_local(value, key.name)
            setattr(value_of(config, section) if section else config, leaf, expanded)


def _expanded(value: Any, what: str) -> Any:
    """Texts, wherever they are in lists and mappings."""
    if isinstance(value, str):
        return expand(value, what)
    if isinstance(value, Mapping):
        return {name: _expanded(entry, f"{what}.{name}") for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_expanded(entry, what) for entry in value]
    return value
