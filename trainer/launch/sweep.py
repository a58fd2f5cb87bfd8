"""Several runs: `python -m trainer.train -m optim.lr=1e-3,3e-4`. Hydra's sweeper chooses them; here they are checked and started.

Each run has its own process: what training leaves in a process (groups, handlers, memory) would disturb the next run.
"""

import logging
import os
import re
import signal
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from model.paths import user_path
from trainer.config.compose import parse_overrides, to_config
from trainer.config.schema import Config, RunConfig
from trainer.distributed.signals import EXIT_INTERRUPTED, EXIT_STOPPED, SIGNALS
from trainer.errors import UserError, did_you_mean
from trainer.launch.app import App, as_typed
from trainer.launch.names import check_directories, is_named, suffixes, text_override
from trainer.output import reader_may_leave
from trainer.reporting.log_lines import log_to_terminal

if TYPE_CHECKING:
    from trainer.launch.results import Result

_log = logging.getLogger(__name__)
PLUGINS = "hydra_plugins.limoe"
"""Hydra only starts launchers from its package for plugins; ours are registered at run time under a name in it."""
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
OPTIMISERS = ("hydra_optuna_sweeper", "hydra_ax_sweeper", "hydra_nevergrad_sweeper", "hydra_orion_sweeper")
"""Packages of sweepers whose next runs depend on the results of earlier ones."""
MULTIRUN = "multirun.yaml"
"""What Hydra's sweepers write into hydra.sweep.dir."""
OF_A_SWEEP = ("hydra.mode", "hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep")
"""Overrides of Hydra's that a single run of a sweep does not get."""
SWEEP_DIR = ("runs/sweeps/${now:%y%m%d-%H%M%S-%f}", "${run.name}")
"""hydra.sweep.dir and hydra.sweep.subdir unless the user sets them."""


class Ended(BaseException):
    """The sweep is over, whatever its sweeper still had planned: refused, only checked, or stopped. `code`: the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class RunFailed(Exception):
    """What a sweeper gets instead of the result of a failed run."""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    number: in the sweep, from 0; own: the overrides that distinguish it; overrides: all of them; settings: Hydra's
    overrides and flags that the run's own process needs; config: the resulting configuration.
    """

    number: int
    own: list[str]
    overrides: list[str]
    settings: list[str]
    config: Config

    @property
    def arguments(self) -> list[str]:
        """The command line of the run itself."""
        return [*self.settings, *self.overrides]


class CheckedLauncher(Launcher):
    """Names the runs of a batch, and checks all of them as a dry run does, before it starts any. A sweeper calls it."""

    def __init__(self, **options: Any) -> None:
        """options: of conf/hydra/launcher/, checked in `setup`, because Hydra hides errors that are raised here."""
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's call before the sweep. Raises UserError for invalid options."""
        assert isinstance(task_function, App)
        self.app, self.context, self.config = task_function, hydra_context, config
        setup_globals()
        HydraConfig.instance().set_config(config)
        self.is_basic = config.hydra.sweeper.get("_target_") == BASIC_SWEEPER
        self.folder = user_path(str(config.hydra.sweep.dir), "hydra.sweep.dir")
        self.app.undo = self.clean_up
        self._made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        fixed = parse_overrides(as_typed(config.hydra.overrides.task))
        self._fixed = {_key(override): str(override.input_line) for override in fixed if not override.is_sweep_override()}
        self.result = self.options.pop("result", None)
        if OmegaConf.is_config(self.result):
            self.result = OmegaConf.to_container(self.result)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Check the runs of a batch and start them; their results in the same order.

        Raises Ended when one of them is impossible, when they are only checked, or when one was stopped.
        """
        if not job_overrides:
            raise UserError(f"this sweep has no runs: nothing matches {' '.join(as_typed(self.config.hydra.overrides.task))}")
        runs = self.prepare(job_overrides, initial_job_idx)
        self.check_result(runs[0].config)
        self.check(runs)
        if any(run.config.run.dry for run in runs):
            self.tell_ready(runs)
            raise Ended(0)
        self.app.undo = None
        self.folder.mkdir(parents=True, exist_ok=True)  # where sweepers other than Hydra's own write what they found
        with wandb_of_a_sweep(self.group):
            return self.start(runs)

    @property
    def group(self) -> str:
        """The sweep's name: that of its own folder, else that of its runs, without what differs between them."""
        if self.has_home:
            return self.folder.name
        return re.sub(r"\$\{[^}]*\}", "", self._raw("run", "name")).strip("-_.") or "sweep"

    @property
    @abstractmethod
    def world(self) -> int:
        """Processes per run."""

    @abstractmethod
    def start(self, runs: list[SweepRun]) -> list[JobReturn]:
        """Start the runs of a batch, which have been checked."""

    def prepare(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[SweepRun]:
        """The runs of a batch, each with its own directory. Raises UserError if that is impossible.

        Runs whose directories differ already keep them; else what differs is added to run.name: `limoe-lr-0.001`. first: the
        number of the first of them in the sweep.
        """
        typed = [[self._as_typed(override) for override in parse_overrides(list(job))] for job in job_overrides]
        jobs = [[text for _, text in job] for job in typed]
        own = [[text for key, text in job if key not in self._fixed] for job in typed]
        numbers = range(first, first + len(jobs))
        if self.is_basic and (twice := [job for place, job in enumerate(jobs) if job in jobs[:place]]):
            raise UserError(f"this sweep would train the same run twice: {' '.join(own[jobs.index(twice[0])])}")
        is_user_s = is_named(jobs[0]) or self._raw("run", "dir") != RunConfig.dir
        configs = [self.compose(job, number)[0] for job, number in zip(jobs, numbers, strict=True)]
        names = [config.run.name for config in configs]
        if self._needs_names(jobs, own, configs):
            names = [f"{name}-{text}" if text else name for name, text in zip(names, suffixes(own, first), strict=True)]
        if names != [config.run.name for config in configs] or not is_user_s:
            # Given even if it is unchanged, so that the id of a job around the sweep is not added to it.
            jobs = [[*job, text_override("run.name", name)] for job, name in zip(jobs, names, strict=True)]
        if self.has_home and not is_user_s:
            folders = [self.compose(job, number)[1] for job, number in zip(jobs, numbers, strict=True)]
            jobs = [[*job, text_override("run.dir", folder)] for job, folder in zip(jobs, folders, strict=True)]
        runs = [
            SweepRun(number, own[place], job, self._settings(number), self.compose(job, number)[0])
            for place, (job, number) in enumerate(zip(jobs, numbers, strict=True))
        ]
        check_directories([run.config for place, run in enumerate(runs) if run.overrides not in jobs[:place]])
        return runs

    def compose(self, overrides: Sequence[str], number: int) -> tuple[Config, str]:
        """The configuration of a run, and the folder that hydra.sweep gives it."""
        job = [f"hydra.job.num={number}", f"hydra.job.id={number}"]
        values = self.context.config_loader.load_sweep_config(self.config, [*overrides, *job])
        HydraConfig.instance().set_config(values)  # for ${hydra:…}
        folder = f"{self.folder}/{OmegaConf.select(values, 'hydra.sweep.subdir')}"
        del_hydra = OmegaConf.masked_copy(values, [str(key) for key in values if key != "hydra"])
        return to_config(del_hydra), folder

    @property
    def has_home(self) -> bool:
        """Whether runs without a user's name go below hydra.sweep.dir: if the user has set it, or its subdir."""
        return (self._raw("hydra", "sweep", "dir"), self._raw("hydra", "sweep", "subdir")) != SWEEP_DIR

    def check(self, runs: list[SweepRun]) -> None:
        """What a dry run checks, for every run before the first: prints a line for each mistake and then raises Ended."""
        from trainer.launch.preflight import examine, print_problems, sweep_problems  # torch takes seconds to import

        if not logging.getLogger().handlers:  # those of hydra/hydra_logging, where the user asks for it
            log_to_terminal(rank=0)
        found = [examine(run.config, self.world) for run in runs]
        if problems := sweep_problems([run.own for run in runs], found):
            raise Ended(print_problems(problems))

    def check_result(self, config: Config) -> None:
        """Raise UserError when the sweeper would learn nothing from a run, or look for the worst one."""
        target = str(self.config.hydra.sweeper.get("_target_"))
        if self.result is not None or not any(name in target for name in OPTIMISERS):
            return
        name, best = self.config.hydra.runtime.choices.get("hydra/sweeper"), config.checkpoint.best
        if best is None:
            raise UserError(
                f"hydra/sweeper={name} needs a value from each run: checkpoint.best=eval/zeroshot/top1 (or another metric) "
                f"gives the best value, hydra.launcher.result=NAME the last one, hydra.launcher.result=[A,B] several"
            )
        direction = self.config.hydra.sweeper.get("direction")
        direction = getattr(direction, "name", direction)
        if isinstance(direction, str) and not direction.startswith(config.checkpoint.best_mode):
            raise UserError(
                f"hydra.sweeper.direction={direction} would look for the worst {best}, because checkpoint.best_mode="
                f"{config.checkpoint.best_mode}: use hydra.sweeper.direction={config.checkpoint.best_mode}imize"
            )

    def tell_ready(self, runs: list[SweepRun]) -> None:
        """Print that runs which were only checked can be started."""
        for run in runs:
            with reader_may_leave():
                print(f"run {run.number + 1}: {' '.join(run.own)} in {run.config.run.dir}: ready to run")

    def returned(self, run: SweepRun, problem: str | None, result: "Result | None") -> JobReturn:
        """What the sweeper gets from a run: its result, or the problem if it failed."""
        self.app.started += 1
        self.app.failed += problem is not None
        failed = problem is not None and not self.is_basic  # Hydra's own would skip the remaining batches
        return JobReturn(
            overrides=run.own,  # Hydra prints them next to a failure
            working_dir=run.config.run.dir,
            task_name="train",
            status=JobStatus.FAILED if failed else JobStatus.COMPLETED,
            _return_value=RunFailed(problem) if failed else result,
        )

    def _as_typed(self, override: Override) -> tuple[str, str]:
        """(key, override), as typed for what the command line fixes: sweepers lose quotes, and turn null into None."""
        key = _key(override)
        return key, self._fixed.get(key, str(override.input_line))

    def _needs_names(self, jobs: list[list[str]], own: list[list[str]], configs: list[Config]) -> bool:
        """Whether the user's own names, if any, do not distinguish the runs."""
        directories = {tuple(job): config.run.dir for job, config in zip(jobs, configs, strict=True)}
        if len(directories) > 1:
            return len(set(directories.values())) < len(directories)
        # A batch of one, as an optimizer asks for: does the name show what differs from the other batches?
        told = [self._raw("run", "name"), self._raw("run", "dir").replace("${run.name}", "")]
        return any(own) and not is_named(own[0]) and not any("${" in text for text in told)

    def _raw(self, *keys: str) -> str:
        """A value of the sweep's configuration with its ${…} as they were written."""
        values: Any = OmegaConf.to_container(self.config[keys[0]], resolve=False)
        for key in keys[1:]:
            values = values[key]
        return str(values)

    def _settings(self, number: int) -> list[str]:
        """Hydra's part of a run's command line: where the configuration is, and Hydra's overrides that are not the sweep's."""
        given = parse_overrides(as_typed(self.config.hydra.overrides.hydra))
        kept = [
            str(override.input_line)
            for override in given
            if not any(override.key_or_group == name or override.key_or_group.startswith(f"{name}.") for name in OF_A_SWEEP)
        ]
        # The mode is said even where -m was: an experiment's file may say MULTIRUN, and the run would be the sweep again.
        return [*self.app.flags, *kept, "hydra.mode=RUN", f"hydra.job.num={number}", f"hydra.job.id={number}"]

    def clean_up(self) -> None:
        """Leave nothing of a sweep that did not start: its sweeper has already written its plan."""
        with suppress(OSError):
            if self.folder in self._made:
                (self.folder / MULTIRUN).unlink(missing_ok=True)
            for path in self._made:
                path.rmdir()


class LocalLauncher(CheckedLauncher):
    """hydra/launcher=local: one run after the other, here. The others still run after a failure."""

    __module__ = PLUGINS

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's call before the sweep."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if self.options:
            names = ", ".join(f"hydra.launcher.{name}" for name in self.options)
            near = did_you_mean(next(iter(self.options)), ("result",))
            raise UserError(f"{names} is for SLURM{near}: add hydra/launcher=slurm, or leave it out")

    @property
    def world(self) -> int:
        """One process per run."""
        return 1

    def start(self, runs: list[SweepRun]) -> list[JobReturn]:
        """Train one after the other. A stop ends the sweep, and the same command continues it."""
        returns = []
        of = f" of {len(runs)}" if self.is_basic and len(runs) > runs[-1].number else ""
        for run in runs:
            with reader_may_leave():
                print(f"run {run.number + 1}{of}: {' '.join(run.own)} in {run.config.run.dir}")
            code = train(run.arguments)
            if code in (EXIT_STOPPED, EXIT_INTERRUPTED):
                raise Ended(code)
            returns.append(self._returned(run, code))
        return returns

    def _returned(self, run: SweepRun, code: int) -> JobReturn:
        from trainer.launch.results import read_result

        if code:
            return self.returned(run, f"run {run.number + 1} ({' '.join(run.own)}) failed with exit code {code}", None)
        return self.returned(run, None, None if self.is_basic else read_result(run.config, self.result))


@contextmanager
def wandb_of_a_sweep(group: str) -> Iterator[None]:
    """What the runs of a sweep, here or in jobs that inherit our environment, find in W&B's variables.

    No WANDB_RUN_ID, or one W&B run around the sweep would become that of all its runs; a group, unless the user has set one.
    """
    run_id = os.environ.pop("WANDB_RUN_ID", None)
    if run_id:
        _log.warning("WANDB_RUN_ID=%s is not heeded: each run of a sweep is a W&B run of its own", run_id)
    given = os.environ.get("WANDB_RUN_GROUP")
    os.environ["WANDB_RUN_GROUP"] = given or group
    try:
        yield
    finally:
        del os.environ["WANDB_RUN_GROUP"]
        if given:
            os.environ["WANDB_RUN_GROUP"] = given


def train(arguments: list[str]) -> int:
    """One run in a process of its own; its exit code. It gets this process's signals and, from the terminal, Ctrl-C."""
    environment = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    run = subprocess.Popen([sys.executable, "-m", "trainer.train", *arguments], env=environment)

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:  # the terminal has sent it to the run too, and a second one would end it without saving
            run.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        return run.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _key(override: Override) -> str:
    return str(override.get_key_element()).lstrip("+")
