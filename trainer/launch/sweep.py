"""Several runs: `python -m trainer.train -m optim.lr=1e-3,3e-4`, one after the other or as a job array (trainer.launch.submit).

Here each run has a process of its own: what a training leaves in a process (groups, handlers, memory) would meet the next one.
"""

import itertools
import signal
import subprocess
import sys
from types import FrameType

from hydra.errors import HydraException

from trainer.config.compose import compose_config, parse_overrides
from trainer.config.schema import Config
from trainer.distributed.environment import launched
from trainer.distributed.signals import EXIT_INTERRUPTED, EXIT_STOPPED, SIGNALS
from trainer.errors import UserError
from trainer.launch.names import check_directories, differences, name_runs
from trainer.launch.slurm_options import read_launcher
from trainer.reporting.log_lines import log_to_terminal

FLAGS = ("-m", "--multirun")


def is_sweep(arguments: list[str]) -> bool:
    """Whether a command line asks for several runs."""
    return any(argument in FLAGS for argument in arguments)


def sweep(arguments: list[str]) -> int:
    """Train with every combination of the values that commas separate; returns 0 when all runs reached their end.

    A run that fails does not keep the others from their turn; one that was stopped ends the sweep, and the same command goes on.
    Raises UserError, before the first run, when one of them cannot be: a mistyped key, or no directory of its own.
    """
    others = [argument for argument in arguments if argument.startswith("-") and argument not in FLAGS]
    if others:
        raise UserError(f"{' '.join(others)} does not go together with -m: leave one of them out")
    if launched():
        raise UserError(
            "-m starts a process of its own for each run, which torchrun and srun do not allow: start the runs one by one "
            "(for lr in 1e-3 3e-4; do torchrun … -m trainer.train optim.lr=$lr run.name=lr-$lr; done)"
        )
    slurm, overrides = read_launcher([argument for argument in arguments if argument not in FLAGS])
    runs = list_runs(overrides)
    if slurm:
        from trainer.launch.submit import submit_sweep

        return submit_sweep(runs, slurm)
    return _train_all(runs)


def _train_all(runs: list[list[str]]) -> int:
    own = differences(runs)
    runs = name_runs(runs)
    configs = [compose_config(overrides) for overrides in runs]
    check_directories(configs)
    if code := check_runs(own, configs):
        return code
    failed = 0
    for number, overrides in enumerate(runs, start=1):
        print(f"run {number} of {len(runs)}: {' '.join(own[number - 1])} in {configs[number - 1].run.dir}", flush=True)
        code = _train(overrides)
        if code in (EXIT_STOPPED, EXIT_INTERRUPTED):
            return code
        failed += code != 0
    if failed:
        print(f"error: {failed} of {len(runs)} runs failed, see above", file=sys.stderr, flush=True)
    return int(failed > 0)


def list_runs(overrides: list[str]) -> list[list[str]]:
    """The overrides of each run, the last key varying fastest. Values may be `a,b`, `choice(…)` and `range(…)`, as Hydra's."""
    choices: list[list[str]] = []
    for override in parse_overrides(overrides):
        if not override.is_sweep_override():
            choices.append([str(override.input_line)])
            continue
        try:
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        except HydraException as problem:
            raise UserError(f"'{override.input_line}': {problem}; write the values with commas between them") from problem
    return [list(run) for run in itertools.product(*choices)]


def check_runs(own: list[list[str]], configs: list[Config]) -> int:
    """What a dry run checks, for every run before the first: prints a line for each mistake; the exit code, 0 for none."""
    from trainer.launch.preflight import examine, print_problems, sweep_problems  # torch takes seconds to import

    log_to_terminal(rank=0)
    problems = sweep_problems(own, [examine(config, 1) for config in configs])
    return print_problems(problems) if problems else 0


def _train(overrides: list[str]) -> int:
    """One run; its exit code. It gets the signals that reach this process and, from the terminal, Ctrl-C."""
    run = subprocess.Popen([sys.executable, "-m", "trainer.train", *overrides])

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:  # the terminal has sent it to the run too, and a second one would end it without saving
            run.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        return run.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
