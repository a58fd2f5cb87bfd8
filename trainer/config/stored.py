"""The configuration that a run saved with its results, and what a command line changes in it."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from model.config import TRIMMED
from model.layout import ARCHITECTURE, CONFIG, read_architecture
from trainer.config.compose import GROUPS, check_key, explain, load_config, parse_overrides, to_config
from trainer.config.schema import Config
from trainer.errors import UserError


def stored_config(path: Path, overrides: list[str]) -> Config:
    """The configuration in a file that a run has written, and single keys `key=value` set in it.

    Raises UserError for a file that holds none or that of a trimmed export, and for a key, a group or a value that cannot be set.
    """
    return _of_whole_model(load_config(path), path, overrides)


def exported_config(folder: Path, overrides: list[str]) -> Config:
    """The configuration of an export with single keys set; one without the run's own has defaults beside the model's sections.

    Errors: as of `stored_config`.
    """
    described = read_architecture(folder)
    if (folder / CONFIG).is_file() or described is None:
        return stored_config(folder / CONFIG, overrides)
    sections = {name: described.get(name) for name in ("model", "router", "data")}
    return _of_whole_model(OmegaConf.create(sections), folder / ARCHITECTURE, overrides)


def _of_whole_model(values: DictConfig, path: Path, overrides: list[str]) -> Config:
    if OmegaConf.select(values, f"model.{TRIMMED}") is not None:
        raise UserError(f"{path} belongs to an export from which parts of the model were left out: give the run it came from")
    return with_overrides(values, overrides)


def with_overrides(values: DictConfig, overrides: list[str]) -> Config:
    """A configuration with single keys `key=value` set in it.

    Raises UserError for a key, a group or a value that cannot be set.
    """
    try:
        for override in parse_overrides(overrides):
            check_key(override)
            if override.key_or_group in GROUPS or override.is_delete() or override.is_sweep_override():
                raise UserError(
                    f"'{override.input_line}': for an existing model, single keys can be set to one value each, "
                    f"such as eval.zeroshot=PATH"
                )
            OmegaConf.update(values, override.key_or_group, override.value(), merge=False)
    except OmegaConfBaseException as problem:
        raise UserError(explain(problem)) from problem
    return to_config(values)
