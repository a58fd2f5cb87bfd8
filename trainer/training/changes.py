"""What a resume changes: one line with every key that differs from the checkpoint's configuration."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from model.secrets import cleared
from trainer.checkpoint.files import CONFIG
from trainer.config.compose import load_config
from trainer.config.schema import Config

OF_START = ("resume", "init_from", "init_blocks", "upcycle_noise", "run.dir", "run.dry")
OF_PICTURES = ("log.experts", "log.every_images", "log.image_samples", "log.prediction_rows", "log.report", "log.progress")
OF_PROFILES = ("train.profile", "train.profile_ranks")
OF_WANDB = ("log.name", "log.group", "log.tags", "log.notes", "log.job_type", "log.system_metrics", "log.artifacts")
CANNOT_MATTER = (*OF_START, *OF_PICTURES, *OF_PROFILES, *OF_WANDB)
"""Keys about where a run starts and how it is shown and measured; what it learns does not depend on them, nor on ALERTS."""
ALERTS = "log.alerts."
BEFORE_THEY_EXISTED = {"train.negatives": "micro"}
"""What runs with several micro-batches did before there was a key, where that is not its default."""
SHOWN = 12
_log = logging.getLogger(__name__)


def tell_changes(config: Config, checkpoint: Path) -> None:
    """Warn about all keys that differ from the checkpoint's training, `key: was -> is`, and about an average that this drops."""
    if not (checkpoint / CONFIG).is_file():
        return
    before = load_config(checkpoint / CONFIG)
    changes = differing(before, config)
    if changes:
        shown = ", ".join(f"{key}: {_text(was)} -> {_text(now)}" for key, (was, now) in list(changes.items())[:SHOWN])
        more = f", and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
        _log.warning("resuming from %s with another configuration: %s%s", checkpoint.name, shown, more)
    kept = OmegaConf.select(before, "train.ema")
    if kept is not None and config.train.ema is None:
        _log.warning(
            "train.ema is off, but %s has a moving average: it is dropped from here on; train.ema=%s keeps it",
            *(checkpoint.name, kept),
        )


def differing(before: DictConfig, config: Config) -> dict[str, tuple[Any, Any]]:
    """The values in a saved configuration and in the current one, by the keys in which they differ.

    A key that did not exist then had its default, or what BEFORE_THEY_EXISTED says.
    """
    asked = OmegaConf.create(cleared(OmegaConf.to_container(OmegaConf.structured(config))))
    formerly = BEFORE_THEY_EXISTED if _value(before, "train.accumulate", 1) > 1 else {}
    changes = {}
    for key, default in _leaves(OmegaConf.to_container(OmegaConf.structured(Config))):
        was, now = _value(before, key, formerly.get(key, default)), _value(asked, key, default)
        if was != now and key not in CANNOT_MATTER and not key.startswith(ALERTS):
            changes[key] = (was, now)
    return changes


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the schema by its dotted name, with its default; a list is one value."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _value(config: Any, key: str, default: Any) -> Any:
    value = OmegaConf.select(config, key, default=default)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _text(value: Any) -> str:
    """As a user would type it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
