"""From the command line to a typed configuration, with errors a person can read."""

from collections.abc import Iterator, Sequence
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
from yaml import MarkedYAMLError, YAMLError

from trainer.config.keys import KEYS as VALUE_KEYS
from trainer.config.nested import OPEN, KeyTwice, quote_within
from trainer.config.paths import expand_paths
from trainer.config.schema import Config
from trainer.errors import UserError, did_you_mean

PACKAGE = Path(__file__).resolve().parents[1]
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""The configuration: inside the package in an installed wheel (setup.py), next to it in a checkout."""


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
        check_one_run(override)
    register_schema()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", overrides=[str(override.input_line) for override in parsed])
    except (HydraException, OmegaConfBaseException) as problem:
        raise UserError(explain(problem)) from problem
    return to_config(composed)


def check_one_run(override: Override) -> None:
    """Raise UserError for an override that only a sweep could follow."""
    if override.key_or_group.startswith(("hydra/launcher", "hydra.launcher")):
        raise UserError(f"'{override.input_line}' is for sweeps: add -m, or submit a single run with sbatch slurm/train.sbatch")
    if override.key_or_group.startswith(("hydra/sweeper", "hydra.sweeper", "hydra.sweep.")):
        raise UserError(f"'{override.input_line}' is for sweeps: add -m")
    if override.is_sweep_override():
        raise UserError(
            f"'{override.input_line}' gives several values: add -m to train with each in turn; write key=[a,b] for a list, "
            f"and key='\"a,b\"' for text that contains a comma"
        )


def parse_overrides(overrides: list[str]) -> list[Override]:
    """The overrides as Hydra understands them; `input_line` is what to give it. Raises UserError that names the bad one."""
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(quote_text(text)))
        except HydraException as problem:
            raise UserError(
                f"'{text}' cannot be parsed ({_one_line(problem)}): write key=value, in quotes for the shell; text that contains "
                f"any of ,:={{}}[]() needs another pair of quotes inside, as in 'run.name=\"a,b\"'"
            ) from problem
    return parsed


def quote_text(argument: str) -> str:
    """The argument with its value in quotes, if its key takes text and Hydra's grammar cannot read it as it is.

    So a shard pattern with braces or a `pipe:` command need not be quoted twice.
    """
    key, _, value = argument.partition("=")
    if not _takes_text(key.lstrip("+")) or value[:1] in ("", "'", '"'):
        return argument
    try:
        quoted = quote_within(value, _is_readable) if value[0] in OPEN else None
    except KeyTwice as problem:
        raise UserError(f"'{argument}' {problem}") from None
    if _is_readable(value):
        return argument
    if quoted is None:
        escaped = value.replace('"', '\\"')
        quoted = f'"{escaped}"'
    return f"{key}={quoted}"


def _takes_text(key: str) -> bool:
    return key in TEXT_KEYS or any(key.startswith(f"{name}.") for name in OPEN_KEYS)


def _is_readable(value: str) -> bool:
    """Whether Hydra's grammar has a meaning for a value as it is."""
    try:
        OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return False
    return True


def to_config(values: Any) -> Config:
    """A composed or loaded configuration as a Config, its paths expanded.

    Raises UserError for an unknown key, a value of the wrong type, and a path with an unknown user's home.
    """
    try:
        # Merged as plain values: a typed node would keep a key that `+` has added to it.
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.to_container(values))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as problem:
        raise UserError(explain(problem)) from problem
    assert isinstance(config, Config)  # what a structured Config becomes
    expand_paths(config)
    return config


def load_config(path: Path) -> DictConfig:
    """The configuration a run left in its config.yaml. Raises UserError when there is none."""
    try:
        loaded = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as problem:
        raise UserError(
            f"{path} is not the configuration of a run ({_one_line(problem)}); give run=DIR, the directory of a run"
        ) from problem
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path} is not the configuration of a run; give run=DIR, the directory of a run")
    return loaded


def explain(problem: Exception) -> str:
    """What is wrong, and what was probably meant, out of a Hydra or OmegaConf error, as one line."""
    if isinstance(problem, MarkedYAMLError) and problem.problem_mark:
        mark = problem.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {problem.problem}"
    if isinstance(problem, HydraException) and isinstance(problem.__cause__, OmegaConfBaseException):
        problem = problem.__cause__  # Hydra's "Error merging override" without its reason
    if isinstance(problem, HydraException) and isinstance(problem.__context__, OmegaConfBaseException):
        # "In 'experiment/mine': ConfigKeyError raised while composing config", without the key that was meant
        where, told = str(problem).partition(":")[0], explain(problem.__context__)
        return f"{where}: {told}" if where.startswith("In ") else told
    if isinstance(problem, MissingConfigException) and problem.missing_cfg_file:
        group, _, name = problem.missing_cfg_file.rpartition("/")
        options = problem.options or []
        if not group or not options:
            return _one_line(problem)
        plugin = "; others are Hydra plugins, which must be installed first" if group == "hydra/sweeper" else ""
        return f"'{group}={name}' does not exist{did_you_mean(name, options)}; {group} can be {', '.join(options)}{plugin}"
    key = getattr(problem, "full_key", None) or ""
    if key and isinstance(problem, (ConfigKeyError, ConfigAttributeError)):
        return _no_such_key(key, _beside(key, problem))
    line = _one_line(problem)
    if key and "not a ListConfig" in line:
        return f"{key} takes a list: write it in brackets, as in '{key}=[ONE,ANOTHER]'"
    if isinstance(problem, HydraException):  # of which the second line often says what the first is about
        line = " ".join(part.strip() for part in str(problem).splitlines()[:2])
    return line if not key or key in line else f"{key}: {line}"


def _beside(key: str, problem: OmegaConfBaseException) -> list[str]:
    """Hydra's keys near an unknown one; our own are all known."""
    parent = getattr(problem, "parent_node", None)
    if not key.startswith("hydra.") or not isinstance(parent, DictConfig):
        return []
    return [f"{key.rpartition('.')[0]}.{name!s}" for name in parent]


def _one_line(problem: Exception) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[0] if lines else type(problem).__name__


def check_key(override: Override) -> None:
    """Raise UserError, with the nearest known name, for an override of an unknown key."""
    key = override.key_or_group
    known = key in KEYS or key in GROUPS or any(key.startswith(f"{name}.") for name in OPEN_KEYS)
    if not known and key.partition(".")[0].partition("/")[0] != "hydra":
        raise UserError(f"'{override.input_line}': {_no_such_key(key)}")
    is_choice = isinstance(override.value(), (str, list, dict)) or override.is_sweep_override()
    if key in GROUPS and not override.is_delete() and not is_choice:
        raise UserError(f"'{override.input_line}': {_always_there(key)}")  # null, or a number: Hydra would only print a traceback
    if known and override.is_delete() and not any(key.startswith(f"{name}.") for name in OPEN_KEYS):
        raise UserError(f"'{override.input_line}': {_always_there(key)}")


def _always_there(key: str) -> str:
    """Why a key cannot be deleted: Hydra would remove it, and the schema would silently restore its default."""
    if key == "experiment":
        return "for a run without an experiment, leave experiment= out"
    if key in GROUPS:
        choices = ", ".join(sorted(path.stem for path in (CONF / key).glob("*.yaml")))
        return f"every run has one {key}: choose {choices}"
    if key not in VALUE_KEYS:
        example = next(name for name in VALUE_KEYS if name.startswith(key))
        return f"a section cannot be deleted; set the keys of {key}, such as {example}"
    if VALUE_KEYS[key].optional:
        return f"a key cannot be deleted; turn it off with {key}=null"
    return f"a key cannot be deleted, only set; the default is {key}={VALUE_KEYS[key].default}"


def _no_such_key(key: str, known: Sequence[str] = ()) -> str:
    return f"the configuration has no key '{key}'{did_you_mean(key, known or [*KEYS, *GROUPS])}"


def _names(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for entry in fields(cls):
        yield prefix + entry.name, entry.type
        if is_dataclass(entry.type):
            yield from _names(entry.type, f"{prefix}{entry.name}.")  # type: ignore[arg-type]


KEYS = [name for name, _ in _names(Config)]
"""Every dotted name of the configuration."""
TEXT_KEYS = [name for name, kind in _names(Config) if kind in (str, str | None, Any)]
"""Those whose value may be text."""
OPEN_KEYS = [name for name, kind in _names(Config) if kind is Any]
"""Those whose value may be a mapping with names of the user's own."""
NO_GROUPS = ("hydra", "sweep")
"""Folders of conf/ for Hydra itself and for W&B's sweeps."""
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in NO_GROUPS)
"""The groups of `conf/` that make up the configuration; hydra/ is about how a sweep starts."""
