"""A sweep as one SLURM job array: `python -m trainer.train -m hydra/launcher=slurm optim.lr=1e-4,3e-4,1e-3 …`.

Every run is composed and checked before anything is submitted. All jobs are the same `slurm/train.sbatch @FILE`, of which each
reads its own line (trainer.launch.job_array).
"""

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from trainer.config.checks import count_processes
from trainer.config.compose import CONF, compose_config
from trainer.errors import UserError
from trainer.launch.job_array import write_runs
from trainer.launch.names import check_directories, differences, name_runs
from trainer.launch.preflight import examine, print_problems, sweep_problems
from trainer.launch.slurm_options import SlurmOptions
from trainer.reporting.log_lines import log_to_terminal
from trainer.reporting.tables import sweep_table

PROJECT = CONF.parent
SCRIPT = PROJECT / "slurm" / "train.sbatch"
SWEEPS = Path("runs") / "sweeps"
OVERRIDES = "overrides.jsonl"


def submit_sweep(runs: list[list[str]], options: SlurmOptions) -> int:
    """Submit the runs, each for `options.world` processes, and print where they lie; returns the exit code.

    With run.dry=true they are only checked. Raises UserError when sbatch is missing or refuses; then nothing is left behind.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "hydra/launcher=slurm needs sbatch, which is not on PATH: start from a machine of the cluster, "
            "or leave hydra/launcher out to train here, one run after the other"
        )
    if not SCRIPT.is_file():
        raise UserError(
            f"{SCRIPT} is missing: an installed wheel has no batch script; start from a checkout of the project "
            f"(pip install -e . in it gives the same commands)"
        )
    folder = SWEEPS / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    own = differences(runs)
    runs = name_runs(runs, folder)
    configs = [compose_config(run) for run in runs]
    check_directories(configs)
    log_to_terminal(rank=0)
    processes = f"{count_processes(options.world)} each"
    problems = sweep_problems(own, [examine(config, options.world) for config in configs])
    if problems:
        code = print_problems(problems)
        print(f"nothing is submitted (checked for {processes})", file=sys.stderr, flush=True)
        return code
    if any(config.run.dry for config in configs):
        title = f"ready: {len(runs)} runs on {processes}; nothing is submitted (run.dry=true)"
        notes = []
    else:
        job = _submit(runs, options, folder)
        title = f"job array {job}: {len(runs)} runs on {processes}"
        again = shlex.join(["sbatch", "--array=INDEX", *_arguments(options, folder)])
        notes = [
            ("watch", f"squeue --job {job}"),
            ("end all, or one", f"scancel {job}; scancel {job}_INDEX"),
            ("one again", again),
        ]
    rows = [
        (str(index), " ".join(overrides), config.run.dir, str(folder / f"{index}.log"))
        for index, (overrides, config) in enumerate(zip(own, configs, strict=True))
    ]
    sweep_table(title, rows, notes)
    return 0


def _submit(runs: list[list[str]], options: SlurmOptions, folder: Path) -> str:
    """The job id of the array."""
    at_once = f"%{options.array_parallelism}" if options.array_parallelism else ""
    command = ["sbatch", "--parsable", f"--array=0-{len(runs) - 1}{at_once}", *_arguments(options, folder)]
    try:
        folder.mkdir(parents=True)
        write_runs(folder / OVERRIDES, runs)
    except OSError as problem:
        raise UserError(
            f"the sweep's folder {folder} cannot be written ({problem.strerror}): start where runs/ can be"
        ) from problem
    done = subprocess.run(command, capture_output=True, text=True, env={"LIMOE_HOME": str(PROJECT), **os.environ})
    if done.returncode != 0:
        (folder / OVERRIDES).unlink()
        folder.rmdir()
        said = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in done.stderr.splitlines()]
        raise UserError(f"sbatch refuses the sweep: {'; '.join(filter(None, said)) or f'exit code {done.returncode}'}")
    print(done.stderr, end="", file=sys.stderr, flush=True)  # warnings
    return done.stdout.strip().partition(";")[0]  # and the cluster's name, where there are several


def _arguments(options: SlurmOptions, folder: Path) -> list[str]:
    """What sbatch gets for the whole sweep and for a single run of it alike."""
    return [f"--output={folder}/%a.log", *options.arguments(), str(_from_here(SCRIPT)), f"@{folder / OVERRIDES}"]


def _from_here(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
