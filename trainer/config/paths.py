"""Every path of a configuration is read by one rule (model.paths), once, right after composing."""

from collections.abc import Mapping
from typing import Any

from model.paths import expand
from trainer.config.keys import KEYS, value_of
from trainer.config.schema import Config


def expand_paths(config: Config) -> None:
    """Expand each path of the configuration for this user; `pipe:` commands and URLs stay as they are.

    Defaults are not expanded: in config.yaml, `~/.cache/limoe` must mean each reader's own. Raises UserError for an unknown user
    or environment variable.
    """
    for key in KEYS.values():
        value = value_of(config, key.name)
        if key.option.path and value != key.default:
            section, _, leaf = key.name.rpartition(".")
            setattr(value_of(config, section) if section else config, leaf, _expanded(value, key.name))


def _expanded(value: Any, what: str) -> Any:
    """Strings, however deep in lists and mappings."""
    if isinstance(value, str):
        return expand(value, what)
    if isinstance(value, Mapping):
        return {name: _expanded(entry, f"{what}.{name}") for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_expanded(entry, what) for entry in value]
    return value
