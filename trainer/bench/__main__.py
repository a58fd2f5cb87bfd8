"""Measure, and write the table: `torchrun --nproc-per-node 2 -m trainer.bench checkpoint [models=dense_s32,limoe_s32]`.

Each benchmark is a module of this package with a function `bench(processes, models)` that returns Markdown on rank 0.
"""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from trainer.bench import accumulate, checkpoint, step, watching
from trainer.config.arguments import Argument, Command
from trainer.config.schema import Config
from trainer.distributed.processes import Processes
from trainer.distributed.program import exit_with, run_program
from trainer.errors import UserError, either
from trainer.output import reader_may_leave

BENCHMARKS = {"accumulate": accumulate.bench, "checkpoint": checkpoint.bench, "step": step.bench, "watching": watching.bench}
FOLDER = Path("benchmarks")


COMMAND = Command(
    "trainer.bench",
    "Measure against a baseline in the same run, alone or under torchrun, and write the table under benchmarks/.",
    (
        Argument("name", "NAME", f"the benchmark: {either(BENCHMARKS)}", required=True, choices=tuple(BENCHMARKS)),
        Argument("models", "A,B", "models to measure, such as dense_s32,limoe_s32 (default: the benchmark's own choice)"),
    ),
    word="name",
)


def read_arguments(arguments: list[str]) -> tuple[str, list[str]]:
    """The benchmark, and the models to measure; [] for its own choice. Raises UserError for anything else."""
    values = COMMAND.read(arguments).values
    return values["name"], values["models"].split(",") if "models" in values else []


def measure(name: str, models: list[str], processes: Processes) -> int:
    """Run a benchmark on all ranks; rank 0 writes the table."""
    table = BENCHMARKS[name](processes, models)
    if processes.is_first:
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f"{name}.md"
        path.write_text(f"{table}\n{_circumstances(name, models, processes)}")
        with reader_may_leave():
            print(path.read_text())
            print(f"written to {path}")
    return 0


def _circumstances(name: str, models: list[str], processes: Processes) -> str:
    command = f"torchrun --nproc-per-node {processes.world} -m trainer.bench {name}"
    if models:
        command += f" models={','.join(models)}"
    on_gpu = processes.device.type == "cuda"
    device = torch.cuda.get_device_name(processes.device) if on_gpu else f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return (
        f"Measured with `{command}`: {processes.world} processes on {device}; Python {platform.python_version()}, "
        f"torch {torch.__version__}, DeepSpeed {version('deepspeed')}.\n"
    )


def main() -> None:
    """Read the command line and measure."""
    try:
        name, models = read_arguments(sys.argv[1:])
    except UserError as problem:
        exit_with(problem)
    run_program(Config(), lambda processes: measure(name, models, processes))


if __name__ == "__main__":
    main()
