"""From the command line to a typed configuration, with errors a person can read."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from trainer.config.schema import Config
from trainer.errors import UserError, did_you_mean

PACKAGE = Path(__file__).resolve().parents[1]
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""The configuration: inside the package in an installed wheel (setup.py), beside it in a checkout."""


def register_schema() -> None:
    """Let Hydra check names and types against `trainer.config.schema.Config` while it composes."""
    ConfigStore.instance().store(name="schema", node=Config)


def compose_config(overrides: list[str]) -> Config:
    """`conf/config.yaml` with the overrides of a command line, as Hydra composes it.

    Raises UserError, one line with the nearest known name, for an unknown key or group and for a value of the wrong type.
    """
    parsed = parse_overrides(overrides)
    for override in parsed:
        check_key(override)
        if override.key_or_group.startswith(("hydra/launcher", "hydra.launcher")):
            raise UserError(f"'{override.input_line}' is for sweeps: add -m, or submit one run by sbatch slurm/train.sbatch")
        if override.is_sweep_override():
            raise UserError(
                f"'{override.input_line}' names several values: -m trains with each in turn, key=[a,b] is one list, "
                f"and key='\"a,b\"' one text"
            )
    register_schema()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", overrides=[str(override.input_line) for override in parsed])
    except (HydraException, OmegaConfBaseException) as problem:
        raise UserError(explain(problem)) from problem
    return to_config(composed)


def overrides_among(arguments: list[str]) -> list[str]:
    """What of a command line overrides the configuration: neither Hydra's flags nor, where there are any, their values."""
    flags = any(argument.startswith("-") for argument in arguments)
    return [argument for argument in arguments if not argument.startswith("-") and ("=" in argument or not flags)]


def parse_overrides(overrides: list[str]) -> list[Override]:
    """The overrides as Hydra understands them; `input_line` is what to give it. Raises UserError that names the bad one."""
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(quote_text(text)))
        except HydraException as problem:
            raise UserError(
                f"'{text}' cannot be parsed ({_one_line(problem)}): write key=value; quote the whole for the shell, and a text "
                f"that holds any of ,:={{}}[]() once more inside, as in 'run.name=\"a,b\"'"
            ) from problem
    return parsed


def quote_text(argument: str) -> str:
    """The argument with its value in quotes when Hydra's grammar cannot read it as it is and its key takes a text.

    So nobody has to quote a shard pattern twice for its braces, or a `pipe:` command.
    """
    key, _, value = argument.partition("=")
    if key.lstrip("+") not in TEXT_KEYS or value[:1] in ("", "[", "{", "'", '"'):
        return argument
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        escaped = value.replace('"', '\\"')
        return f'{key}="{escaped}"'
    return argument


def to_config(values: Any) -> Config:
    """A composed or loaded configuration as a Config. Raises UserError for an unknown key or a value of the wrong type."""
    try:
        # Merged as plain values: a typed node would bring a key along that `+` has added to it.
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.to_container(values))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as problem:
        raise UserError(explain(problem)) from problem
    assert isinstance(config, Config)  # what a structured Config becomes
    return config


def load_config(path: Path) -> DictConfig:
    """The configuration a run left in its config.yaml. Raises UserError when there is none."""
    try:
        loaded = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as problem:
        raise UserError(f"{path}: no configuration of a run ({_one_line(problem)}); give run=DIR of a run directory") from problem
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path}: no configuration of a run; give run=DIR of a run directory")
    return loaded


def explain(problem: Exception) -> str:
    """The part of a Hydra or OmegaConf error that says what is wrong and what was meant, as one line."""
    if isinstance(problem, HydraException) and isinstance(problem.__cause__, OmegaConfBaseException):
        problem = problem.__cause__  # Hydra's "Error merging override" without its reason
    if isinstance(problem, MissingConfigException) and problem.missing_cfg_file:
        group, _, name = problem.missing_cfg_file.rpartition("/")
        options = problem.options or []
        return f"'{group}={name}': no such choice{did_you_mean(name, options)}; {group} can be {', '.join(options)}"
    key = getattr(problem, "full_key", None) or ""
    if key and isinstance(problem, (ConfigKeyError, ConfigAttributeError)):
        return _no_such_key(key)
    line = _one_line(problem)
    return line if not key or key in line else f"{key}: {line}"


def _one_line(problem: Exception) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[0] if lines else type(problem).__name__


def check_key(override: Override) -> None:
    """Raise UserError, with the nearest known name, for an override of a key that there is not."""
    key = override.key_or_group
    known = key in KEYS or key in GROUPS or any(key.startswith(f"{name}.") for name in OPEN_KEYS)
    if not known and key.partition(".")[0].partition("/")[0] != "hydra":
        raise UserError(f"'{override.input_line}': {_no_such_key(key)}")


def _no_such_key(key: str) -> str:
    return f"the configuration has no '{key}'{did_you_mean(key, [*KEYS, *GROUPS])}"


def _names(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for entry in fields(cls):
        yield prefix + entry.name, entry.type
        if is_dataclass(entry.type):
            yield from _names(entry.type, f"{prefix}{entry.name}.")  # type: ignore[arg-type]


KEYS = [name for name, _ in _names(Config)]
"""Every dotted name of the configuration."""
TEXT_KEYS = [name for name, kind in _names(Config) if kind in (str, str | None, Any)]
"""Those whose value may be a text."""
OPEN_KEYS = [name for name, kind in _names(Config) if kind is Any]
"""Those whose value may be a mapping with names of the user's own."""
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
"""The groups of `conf/` that make up the configuration; hydra/ says how a sweep is started."""
