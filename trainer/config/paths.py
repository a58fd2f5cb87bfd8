"""Every path of a configuration is read by one rule (model.paths), once, right after composing."""

from collections.abc import Mapping
from typing import Any

from model.paths import expand, expand_local
from trainer.config.keys import KEYS, value_of
from trainer.config.schema import Config

ON_HUB = "hf://"
"""How an export on the Hugging Face Hub is named (model.hub)."""


def expand_paths(config: Config) -> None:
    """Expand each path of the configuration for this user; `pipe:` commands and URLs stay as they are.

    Defaults are not expanded: in config.yaml, `~/.cache/limoe` must mean each reader's own. Raises UserError for an unknown user
    or environment variable, and for a URL where only a path makes sense.
    """
    for key in KEYS.values():
        value = value_of(config, key.name)
        if key.option.path and value != key.default:
            section, _, leaf = key.name.rpartition(".")
            # Those that name shards may be anything; the others are each one path.
            may_be_remote = key.kind is Any or str(value).startswith(ON_HUB)
            expanded = _expanded(value, key.name) if may_be_remote else value and expand_local(value, key.name)
            setattr(value_of(config, section) if section else config, leaf, expanded)


def _expanded(value: Any, what: str) -> Any:
    """Strings, however deep in lists and mappings."""
    if isinstance(value, str):
        return expand(value, what)
    if isinstance(value, Mapping):
        return {name: _expanded(entry, f"{what}.{name}") for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_expanded(entry, what) for entry in value]
    return value
