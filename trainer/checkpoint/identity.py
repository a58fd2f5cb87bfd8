"""Whether a configuration describes a checkpoint's model. Shapes are not enough: they do not depend on the number of heads."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trainer.checkpoint.files import CONFIG
from trainer.config.compose import load_config
from trainer.config.keys import KEYS, Key, value_of
from trainer.config.schema import Config
from trainer.errors import UserError

_log = logging.getLogger(__name__)
SHOWN = 3
OF_EXPERTS = (
    "router.choice",
    "router.gates",
    "router.normalise_gates",
    "router.top_k",
    "router.bias.kind",
    "model.experts",
    "model.expert_granularity",
    "model.shared_experts",
)
"""Keys that change nothing without expert layers."""


def check_identity(checkpoint: Path, config: Config, otherwise: str, free: Collection[str] = ()) -> None:
    """Raise UserError when the weights of a checkpoint would compute a different function than they were trained for.

    `otherwise`: what to do if the other model is intended; free: keys that may differ all the same.
    """
    refuse_other_model(f"checkpoint {checkpoint}", compared_with(checkpoint, config), otherwise, free, f"{checkpoint / CONFIG}")


def refuse_other_model(
    what: str, values: Mapping[str, tuple[Any, Any]], otherwise: str, free: Collection[str], described: str
) -> None:
    """Raise UserError when weights would compute a different function than they were trained for.

    values: with what they were trained, and what is asked for, by key; described: the file that has all of the former, if any.
    """
    compared = {name: pair for name, pair in values.items() if name not in free}
    is_dense = compared.get("model.expert_layers") == ([], [])
    refused = [
        name
        for name, (was, wanted) in compared.items()
        if was != wanted and KEYS[name].option.identity and not (is_dense and name in OF_EXPERTS)
    ]
    if refused:
        shown = "; ".join("{} was {}, is {}".format(name, *compared[name]) for name in refused[:SHOWN])
        more = f"; and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
        again = " ".join(f"{name}={_typed(compared[name][0])}" for name in refused)
        use = f"use {again}" if not (more and described) else f"use the model that {described} describes"
        raise UserError(f"{what} belongs to another model ({shown}{more}): {use}, or {otherwise}")


def warn_of_other_pictures(checkpoint: Path, config: Config) -> None:
    """Warn when a configuration prepares images differently from a checkpoint's training."""
    tell_other_pictures(checkpoint.name, compared_with(checkpoint, config))


def tell_other_pictures(what: str, values: Mapping[str, tuple[Any, Any]]) -> None:
    """The same, of what weights were trained with and what is asked for, by key."""
    for name, (was, wanted) in values.items():
        if was != wanted and KEYS[name].option.prepares_input:
            _log.warning(
                "%s=%s, but %s was trained with %s: the model sees images unlike those it was trained on",
                *(name, wanted, what, was),
            )


def compared_with(checkpoint: Path, config: Config) -> dict[str, tuple[Any, Any]]:
    """What a checkpoint was trained with, and what is asked for, by key; empty if it has no configuration."""
    if not (checkpoint / CONFIG).is_file():
        return {}
    before = load_config(checkpoint / CONFIG)
    return {name: (_trained(before, key), value_of(config, name)) for name, key in KEYS.items()}


def _trained(before: Any, key: Key) -> Any:
    """What a checkpoint was trained with; the default if it is older than the key."""
    value = OmegaConf.select(before, key.name, default=key.default)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _typed(value: Any) -> str:
    if value is None:
        return "null"
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
