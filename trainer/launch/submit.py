"""A sweep as one SLURM job array: `python -m trainer.train -m hydra/launcher=slurm optim.lr=1e-4,3e-4,1e-3 …`.

Every run is composed and checked before anything is submitted. All jobs are the same `slurm/train.sbatch @FILE`, and each
reads its own line (trainer.launch.job_array).
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from trainer.config.compose import CONF
from trainer.distributed.signals import EXIT_INTERRUPTED
from trainer.errors import UserError, reason
from trainer.launch.job_array import write_runs
from trainer.launch.slurm_options import SlurmOptions, read_options
from trainer.launch.sweep import PLUGINS, CheckedLauncher, Ended, SweepRun
from trainer.output import reader_may_leave
from trainer.reporting.tables import sweep_table

PROJECT = CONF.parent
SCRIPT = PROJECT / "slurm" / "train.sbatch"
OVERRIDES = "overrides.jsonl"
POLL_SECONDS = 20.0


class SlurmLauncher(CheckedLauncher):
    """hydra/launcher=slurm: a batch of runs is a job array, and each run is one of its jobs."""

    __module__ = PLUGINS

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's call before the sweep."""
        given: dict[str, Any] = {
            name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for name, value in self.options.items()
        }
        self.slurm: SlurmOptions = read_options(given)
        self._world = self.slurm.world
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if shutil.which("sbatch") is None:
            raise UserError(
                "hydra/launcher=slurm needs sbatch, which is not on PATH: start on a machine of the cluster, "
                "or leave out hydra/launcher to train here, one run after the other"
            )
        if not SCRIPT.is_file():
            raise UserError(
                f"{SCRIPT} is missing: an installed wheel has no batch script; start from a checkout of the project "
                f"(pip install -e . in it gives the same commands)"
            )
        self.batches = 0

    @property
    def world(self) -> int:
        """Processes per run."""
        return self._world

    @property
    def has_home(self) -> bool:
        """Whether runs go into the sweep's folder, next to the logs of its jobs."""
        return True

    @property
    def waits(self) -> bool:
        """Whether the sweep waits for the runs' results."""
        return not self.is_basic if self.slurm.wait is None else self.slurm.wait

    def check(self, runs: list[SweepRun]) -> None:
        """Check what a dry run checks, for every run."""
        try:
            super().check(runs)
        except Ended:
            print(f"nothing is submitted (checked for {self._each()})", file=sys.stderr, flush=True)
            raise

    def tell_ready(self, runs: list[SweepRun]) -> None:
        """Print that runs which were only checked can be submitted."""
        title = f"ready: {len(runs)} runs on {self._each()}; nothing is submitted (run.dry=true)"
        sweep_table(title, [(str(run.number), " ".join(run.own), run.config.run.dir, "") for run in runs], [])

    def start(self, runs: list[SweepRun]) -> list[JobReturn]:
        """Submit the runs, print where they are, and wait for them if their results are needed.

        Raises UserError when sbatch refuses; then nothing is left behind.
        """
        # An optimizer may ask for the same run twice at once: one job is enough, and two would share a directory.
        different = [run for place, run in enumerate(runs) if run.overrides not in [other.overrides for other in runs[:place]]]
        batch = f"-{self.batches}" if self.batches else ""
        self.batches += 1
        listed = self.folder / OVERRIDES.replace(".", f"{batch}.")
        job = self._submit(different, listed, batch)
        title = f"job array {job}: {len(different)} runs on {self._each()}"
        notes = [
            ("watch", f"squeue --job {job}"),
            ("end all, or one", f"scancel {job}; scancel {job}_INDEX"),
            ("one again", shlex.join(["sbatch", "--array=INDEX", *self._arguments(listed, batch)])),
        ]
        rows = [
            (str(index), " ".join(run.own), run.config.run.dir, self._log(batch, str(index)))
            for index, run in enumerate(different)
        ]
        sweep_table(title, rows, notes)
        if not self.waits:
            return [self.returned(run, None, None) for run in runs]
        _wait_for(job)
        return [self._returned(run) for run in runs]

    def _returned(self, run: SweepRun) -> JobReturn:
        from trainer.launch.results import has_ended, read_result

        if not has_ended(run.config):
            line = f"run {run.number + 1} ({' '.join(run.own)}) has not finished: see its log"
            print(f"error: {line}", file=sys.stderr, flush=True)
            return self.returned(run, line, None)
        return self.returned(run, None, None if self.is_basic else read_result(run.config, self.result))

    def _each(self) -> str:
        from trainer.config.checks import count_processes  # it imports torch, which --help must not wait for

        return f"{count_processes(self._world)} each"

    def _submit(self, runs: list[SweepRun], listed: Path, batch: str) -> str:
        """The job id of the array."""
        at_once = f"%{self.slurm.array_parallelism}" if self.slurm.array_parallelism else ""
        command = ["sbatch", "--parsable", f"--array=0-{len(runs) - 1}{at_once}", *self._arguments(listed, batch)]
        try:
            write_runs(listed, [run.arguments for run in runs])
        except OSError as problem:
            raise UserError(
                f"the sweep's folder {self.folder} cannot be written ({reason(problem)}): start in another folder, "
                f"or give another hydra.sweep.dir"
            ) from problem
        done = subprocess.run(command, capture_output=True, text=True, env={"LIMOE_HOME": str(PROJECT), **os.environ})
        if done.returncode != 0:
            listed.unlink()
            self.clean_up()
            said = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in done.stderr.splitlines()]
            raise UserError(f"sbatch refuses the sweep: {'; '.join(filter(None, said)) or f'exit code {done.returncode}'}")
        print(done.stderr, end="", file=sys.stderr, flush=True)  # warnings
        return done.stdout.strip().partition(";")[0]  # followed by the cluster's name, if there are several

    def _arguments(self, listed: Path, batch: str) -> list[str]:
        """sbatch's arguments, the same for a whole batch and for a single run of it."""
        return [f"--output={self._log(batch, '%a')}", *self.slurm.arguments(), str(_from_here(SCRIPT)), f"@{listed}"]

    def _log(self, batch: str, index: str) -> str:
        return f"{self.folder}/{batch[1:] + '-' if batch else ''}{index}.log"


def _wait_for(job: str) -> None:
    """Wait until SLURM no longer knows any job of the array; it still knows a requeued one."""
    with reader_may_leave():
        print(f"waiting for job array {job}: Ctrl-C ends the sweep, not its jobs")
    try:
        while subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True).stdout.strip():
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        print(f"interrupted: the jobs of {job} continue; scancel {job} ends them", file=sys.stderr, flush=True)
        raise Ended(EXIT_INTERRUPTED) from None


def _from_here(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
