"""`trainer.train` as an application of Hydra: its flags, multirun and sweepers are Hydra's own; each mistake gives one line.

Our own parts: the defaults of Hydra's settings below, the launchers (trainer.launch.sweep, trainer.launch.submit), the checks.
"""

import argparse
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser  # the parser of @hydra.main, which has no public counterpart
from hydra.conf import HelpConf, HydraConf, JobConf, RunDir, SweepDir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from model.paths import expand, user_path
from trainer.config.compose import CONF, GROUPS, check_key, check_one_run, explain, parse_overrides, register_schema
from trainer.config.schema import Config
from trainer.distributed.environment import launched
from trainer.errors import UserError, did_you_mean
from trainer.launch.app import FULL_ERROR, App
from trainer.launch.slurm_options import PREFIX, SlurmOptions
from trainer.launch.submit import SlurmLauncher
from trainer.launch.sweep import PLUGINS, SWEEP_DIR, Ended, LocalLauncher, RunFailed
from trainer.output import reader_may_leave

RUN_DIR = "."

HEADER = """\
Train a model. Any value below can be overridden: python -m trainer.train model=limoe_s32 train.steps=2000 optim.lr=3e-4
Every key is explained in docs/configuration.md; sweeps (-m), experiment files and your own configurations in docs/sweeps.md.
"""
FOOTER = """\
run.dry=true checks a run without starting it; --cfg job prints its configuration; -m trains with each of several values.
--hydra-help lists Hydra's flags and settings.
"""


class Refused(BaseException):
    """Carries a UserError, its cause, through Hydra's callbacks, which would turn an Exception into a warning."""


class CheckSettings(Callback):
    """Refuses Hydra settings that cannot work here as documented, before anything is written."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a single run."""
        self._check(config, _check_settings)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a sweep."""
        self._check(config, _check_settings, _check_sweep)

    @staticmethod
    def _check(config: DictConfig, *checks: Callable[[DictConfig], None]) -> None:
        try:
            for check in checks:
                check(config.hydra)
        except UserError as problem:
            raise Refused from problem


class ConfSearchPath(SearchPathPlugin):
    """Keeps our groups available if --config-path is a folder of the user's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append conf/ unless it is the main folder already."""
        if all(element.path != str(CONF) for element in search_path.get_path()):
            search_path.append("limoe", f"file://{CONF}")


def run_app(arguments: list[str], run: Callable[[Config], object]) -> int:
    """Do what a command line asks of Hydra: one run, a sweep, or help. Returns the exit code.

    Raises UserError, with one line, for any mistake in it.
    """
    given = parse_arguments(arguments)
    if not given.shell_completion and given.experimental_rerun is None:
        given.overrides = [override.input_line for override in _check_overrides(given)]
    register()
    app = App(run, _flags(given, "config_path", "config_name", "config_dir"))
    sys.argv[1:] = [*_flags(given), *given.overrides]  # Hydra needs all overrides together, with nothing between them
    main = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(app)
    try:
        with _exceptions_let_through(), reader_may_leave():
            main()
    except Refused as refused:
        raise refused.__cause__ or refused from None
    except Ended as ended:
        return ended.code
    except RunFailed as problem:  # for the sweeper, a reason to end the sweep
        print(f"error: {problem}", file=sys.stderr, flush=True)
    except SystemExit as ended:  # --help and the like; an unknown --package
        return 2 if ended.code else 0
    except Exception as problem:
        if isinstance(problem, UserError) or os.environ.get(FULL_ERROR) == "1":
            raise
        if _is_ours(problem) and not isinstance(problem, (HydraException, OmegaConfBaseException)):
            raise
        raise UserError(_explain(problem)) from problem
    finally:
        if app.undo:
            app.undo()
    if app.problem:
        raise app.problem
    return app.code or app.sweep_code()


def register() -> None:
    """Register with Hydra: names and types of the configuration, our settings and launchers, and conf/."""
    register_schema()
    plugins, store = Plugins.instance(), ConfigStore.instance()
    # Hydra starts launchers by name, and only from its package for plugins, which does not exist if none is installed.
    package = sys.modules.setdefault(PLUGINS.partition(".")[0], ModuleType(PLUGINS.partition(".")[0]))
    module = sys.modules[PLUGINS] = ModuleType(PLUGINS)
    setattr(package, PLUGINS.partition(".")[2], module)
    for launcher in (LocalLauncher, SlurmLauncher):
        setattr(module, launcher.__name__, launcher)
        plugins.register(launcher)
    plugins.register(ConfSearchPath)
    for name in ("basic", "local"):  # Hydra's own would train every run of a sweep in this process
        store.store(group="hydra/launcher", name=name, node={"_target_": f"{PLUGINS}.LocalLauncher", "result": None})
    store.store(group="hydra", name="config", node=_settings(), provider="hydra")


def _settings() -> HydraConf:
    """Hydra's settings here, for every primary configuration, including a user's own."""
    settings = HydraConf(
        run=RunDir(dir=RUN_DIR),
        sweep=SweepDir(*SWEEP_DIR),
        output_subdir=None,
        job=JobConf(name="train"),
        callbacks={"limoe": {"_target_": f"{__name__}.{CheckSettings.__name__}"}},
        help=HelpConf(app_name="trainer.train", header=HEADER, footer=FOOTER),
    )
    # Log lines are ours (trainer.reporting.log_lines), and "disabled" would switch off the loggers of what is imported already.
    logging = {"hydra_logging": "none", "job_logging": "none"}
    settings.defaults = [{group: logging.get(group, name) for group, name in entry.items()} for entry in settings.defaults]
    return settings


def parse_arguments(arguments: list[str]) -> Namespace:
    """Hydra's flags and the overrides, in any order. Raises UserError for an unknown flag or one without its value."""
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        given, others = parser.parse_known_intermixed_args(arguments)
    except argparse.ArgumentError as problem:
        raise UserError(f"{problem}; --hydra-help lists the flags") from problem
    if others:
        known = [flag for action in parser._actions for flag in action.option_strings]
        raise UserError(f"there is no flag {others[0]}{did_you_mean(others[0], known)}; --hydra-help lists them")
    if given.config_dir:
        given.config_dir = expand(given.config_dir, "--config-dir")
    if given.config_path and "://" not in given.config_path:
        # Otherwise Hydra looks next to train.py, where users have no folder.
        here = user_path(given.config_path, "--config-path").resolve()
        given.config_path = str(here) if here.is_dir() else given.config_path
    return given


def _flags(given: Namespace, *names: str) -> list[str]:
    """The flags as typed on a command line; only the named ones, if any are named."""
    flags = []
    for name, value in vars(given).items():
        if name != "overrides" and value not in (None, False) and (not names or name in names):
            flags += [f"--{name.replace('_', '-')}", *([value] if isinstance(value, str) else [])]
    return flags


def _check_overrides(given: Namespace) -> list[Override]:
    """The overrides; checks that their keys exist and, for a single run, that each gives a single value."""
    overrides = parse_overrides(given.overrides)
    sweep = given.multirun or any(each.key_or_group == "hydra.mode" and str(each.value()) == "MULTIRUN" for each in overrides)
    folders = [CONF, *([Path(given.config_dir)] if given.config_dir else [])]
    elsewhere = given.config_path or given.config_name or any(each.key_or_group == "hydra.searchpath" for each in overrides)
    for override in overrides:
        is_group = any((folder / override.key_or_group).is_dir() for folder in folders)
        if override.key_or_group in GROUPS or not (elsewhere or is_group):
            check_key(override)
        if given.config_dir:
            _check_found_first(override, Path(given.config_dir))
        if not sweep and not given.hydra_help:
            check_one_run(override)
        elif override.is_hydra_override() and override.is_sweep_override():
            raise UserError(
                f"'{override.input_line}': all runs of a sweep start in the same way: give {override.key_or_group} a single value"
            )
    return overrides


def _check_found_first(override: Override, own: Path) -> None:
    """Raise UserError if a choice, or one of a sweep's, names a file of the user's that a file of ours hides."""
    group = override.key_or_group
    for name in re.findall(r"[^\s,\[\]'\"]+", (override.input_line or "").partition("=")[2]):
        mine, ours = (folder / group / f"{name.removesuffix('.yaml')}.yaml" for folder in (own, CONF))
        if mine.is_file() and ours.is_file() and not mine.samefile(ours):
            raise UserError(
                f"'{override.input_line}' would read {ours}, which comes before {mine}: give yours another name, or use "
                f"--config-path {own}, where your folder comes first"
            )


def _check_settings(settings: DictConfig) -> None:
    """Raises UserError for settings that would have no effect, or a double one: a run has one directory and one log."""
    raw = OmegaConf.to_container(settings.run, resolve=False)
    if raw != {"dir": RUN_DIR}:
        raise UserError("hydra.run.dir is not used here: the directory of a run is run.dir, as in run.dir=/scratch/me/first")
    if settings.output_subdir is not None:
        raise UserError("hydra.output_subdir is not used here: a run's configuration is config.yaml in its run.dir; leave it out")
    if settings.job.chdir:
        raise UserError("hydra.job.chdir=true is not possible here: paths are relative to the folder where the command is typed")
    choice = settings.runtime.choices.get("hydra/job_logging")
    if choice != "none":
        raise UserError(
            f"hydra/job_logging={choice} is not used here: a run's lines are in train.log in its run.dir; leave it out"
        )


def _check_sweep(settings: DictConfig) -> None:
    if launched():
        raise UserError(
            "-m starts a separate process for each run, which is not possible under torchrun or srun: start the runs one by one "
            "(for lr in 1e-3 3e-4; do torchrun … -m trainer.train optim.lr=$lr run.name=lr-$lr; done)"
        )
    target = str(settings.launcher.get("_target_")) if settings.launcher else "null"
    if not target.startswith(f"{PLUGINS}."):
        name = settings.runtime.choices.get("hydra/launcher")
        raise UserError(
            f"hydra/launcher={name} cannot be used: it would start unchecked runs, in processes that cannot be reused after "
            f"training; choose local (one after the other) or slurm (a job array)"
        )


def _explain(problem: Exception) -> str:
    line = explain(problem)
    key = getattr(problem.__cause__, "full_key", None) or ""
    if key.startswith(PREFIX) and key.removeprefix(PREFIX) in SlurmOptions.__dataclass_fields__:
        return f"{key} is for SLURM: add hydra/launcher=slurm, or leave it out"
    if isinstance(problem, (HydraException, OmegaConfBaseException, MarkedYAMLError)):
        return line
    return f"{line} ({type(problem).__name__}; {FULL_ERROR}=1 before the command shows where)"


@contextmanager
def _exceptions_let_through() -> Iterator[None]:
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        os.environ.pop(FULL_ERROR, None)
        if before is not None:
            os.environ[FULL_ERROR] = before


def _is_ours(problem: Exception) -> bool:
    """Whether an error was raised in our code called by Hydra, and not in Hydra or one of its plugins."""
    frames, step = [], problem.__traceback__
    while step:
        frames.append(step.tb_frame.f_globals.get("__name__", ""))
        step = step.tb_next
    within = frames[frames.index("hydra.main") :] if "hydra.main" in frames else frames
    return any(name.startswith(("trainer.", "__main__")) for name in within)
