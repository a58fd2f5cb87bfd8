"""From the command line to a typed configuration, with errors a person can read."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.config import Config
from trainer.errors import UserError, did_you_mean

CONF = Path(__file__).resolve().parents[1] / "conf"


def register_schema() -> None:
    """Let Hydra check names and types against `trainer.config.Config` while it composes."""
    ConfigStore.instance().store(name="schema", node=Config)


def to_config(values: Any) -> Config:
    """A composed or loaded configuration as a Config. Raises UserError for an unknown key or a value of the wrong type."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), values)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as problem:
        raise UserError(first_line(problem)) from problem
    assert isinstance(config, Config)  # what a structured Config becomes
    return config


def load_config(path: Path) -> DictConfig:
    """The configuration a run left in its config.yaml. Raises UserError when there is none."""
    try:
        loaded = OmegaConf.load(path)
    except (OSError, ValueError) as problem:
        raise UserError(f"{path}: no configuration of a run ({problem}); give run=DIR of a run directory") from problem
    assert isinstance(loaded, DictConfig)
    return loaded


def first_line(problem: Exception) -> str:
    """The part of a Hydra or OmegaConf error that says what is wrong, as one line."""
    if isinstance(problem, HydraException) and isinstance(problem.__cause__, OmegaConfBaseException):
        problem = problem.__cause__  # Hydra's "Error merging override" without its reason
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    key = next((line.removeprefix("full_key:").strip() for line in lines if line.startswith("full_key:")), None)
    return (f"{key}: " if key and key not in lines[0] else "") + lines[0]


def compose_config(overrides: list[str]) -> Config:
    """`conf/config.yaml` with the overrides of a command line, as Hydra composes it.

    Raises UserError, one line with the nearest known name, for an unknown key or group and for a value of the wrong type.
    """
    register_schema()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as problem:
        raise UserError(_explain(problem, overrides)) from problem
    return to_config(composed)


def _explain(problem: Exception, overrides: list[str]) -> str:
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key not in KEYS and key not in GROUPS:
            return f"'{override}': the configuration has no '{key}'{did_you_mean(key, [*KEYS, *GROUPS])}"
    if isinstance(problem, MissingConfigException) and problem.missing_cfg_file:
        group, _, name = problem.missing_cfg_file.rpartition("/")
        options = problem.options or []
        return f"'{group}={name}': no such choice{did_you_mean(name, options)}; {group} can be {', '.join(options)}"
    return first_line(problem)


def _leaves(cls: type, prefix: str = "") -> Iterator[str]:
    for entry in fields(cls):
        yield prefix + entry.name
        if is_dataclass(entry.type):
            yield from _leaves(entry.type, f"{prefix}{entry.name}.")  # type: ignore[arg-type]


KEYS = list(_leaves(Config))
"""Every dotted name of the configuration."""
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
"""The groups of `conf/`."""
