"""Measure, and write the table: `torchrun --nproc-per-node 2 -m trainer.bench checkpoint [models=dense_s32,limoe_s32]`.

Each benchmark is a module of this package with a function `bench(processes, choice)` that returns its table on rank 0, as
Markdown or as a Report, which is also written as JSON; the choice is of models, or of the layer's rows.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from trainer.bench import accumulate, checkpoint, layer, step, watching
from trainer.bench.runs import Report
from trainer.config.arguments import Argument, Command
from trainer.config.schema import Config
from trainer.distributed.processes import Processes
from trainer.distributed.program import exit_with, run_program
from trainer.errors import UserError, either
from trainer.output import reader_may_leave

BENCHMARKS: dict[str, Callable[[Processes, list[str]], str | Report]] = {
    "accumulate": accumulate.bench,
    "checkpoint": checkpoint.bench,
    "layer": layer.bench,
    "step": step.bench,
    "watching": watching.bench,
}
FOLDER = Path("benchmarks")


COMMAND = Command(
    "trainer.bench",
    "Measure against a baseline in the same run, alone or under torchrun, and write the table under benchmarks/.",
    (
        Argument("name", "NAME", f"the benchmark: {either(BENCHMARKS)}", required=True, choices=tuple(BENCHMARKS)),
        Argument("models", "A,B", "models to measure, such as dense_s32,limoe_s32 (default: the benchmark's own choice)"),
        Argument(
            "rows", "A,B", "of layer: tokens:width:experts:fp32 or :bf16, such as 4096:256:8:fp32 (default: its own choice)"
        ),
        Argument("threads", "N", "threads of a process (default: torch's own choice)"),
    ),
    word="name",
)


@dataclass(frozen=True)
class Asked:
    """A benchmark, and what it measures: models, or rows of the layer; [] for its own choice. threads: None: torch's choice."""

    name: str
    choice: list[str]
    threads: int | None = None

    @property
    def arguments(self) -> str:
        """As typed."""
        key = "rows" if self.name == "layer" else "models"
        chosen = [f"{key}={','.join(self.choice)}"] if self.choice else []
        return " ".join([self.name, *chosen, *([f"threads={self.threads}"] if self.threads else [])])


def read_arguments(arguments: list[str]) -> Asked:
    """What a command line asks for. Raises UserError for what no benchmark can do."""
    values = COMMAND.read(arguments).values
    name, threads = values["name"], values.get("threads")
    key, other = ("rows", "models") if name == "layer" else ("models", "rows")
    if other in values:
        raise UserError(f"{other}={values[other]}: {name} has no {other}; {COMMAND.usage}")
    if threads is not None and not (threads.isascii() and threads.isdigit() and int(threads) > 0):
        raise UserError(f"threads={threads}: write a number from 1")
    choice = values[key].split(",") if key in values else []
    if name == "layer":
        for row in choice:
            layer.Shape.of(row)
    return Asked(name, choice, None if threads is None else int(threads))


def measure(asked: Asked, processes: Processes) -> int:
    """Run a benchmark on all ranks; rank 0 writes the table, and its rows as JSON where it gives them."""
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    result = BENCHMARKS[asked.name](processes, asked.choice)
    if processes.is_first:
        report = result if isinstance(result, Report) else Report(result, [])
        FOLDER.mkdir(exist_ok=True)
        path, circumstances = FOLDER / f"{asked.name}.md", _circumstances(asked, processes)
        path.write_text(f"{report.markdown}\n{_sentence(circumstances)}")
        if report.rows:
            path.with_suffix(".json").write_text(json.dumps({**circumstances, "rows": report.rows}, indent=1) + "\n")
        with reader_may_leave():
            print(path.read_text())
            print(f"written to {path}")
    return 0


def _circumstances(asked: Asked, processes: Processes) -> dict[str, str | int]:
    program = f"torchrun --nproc-per-node {processes.world}" if processes.world > 1 or asked.name != "layer" else "python"
    on_gpu = processes.device.type == "cuda"
    device = torch.cuda.get_device_name(processes.device) if on_gpu else f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return {
        "command": f"{program} -m trainer.bench {asked.arguments}",
        "processes": processes.world,
        "threads": torch.get_num_threads(),
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": version("deepspeed"),
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit that is checked out, with a + if files differ from it; "unknown" outside of git."""
    try:
        named = subprocess.run(
            ["git", "describe", "--always", "--abbrev=10", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return named.stdout.strip()


def _sentence(found: Mapping[str, str | int]) -> str:
    return (
        f"Measured with `{found['command']}`: {found['processes']} processes of {found['threads']} threads on {found['device']}; "
        f"Python {found['python']}, torch {found['torch']}, DeepSpeed {found['deepspeed']}; commit {found['commit']}.\n"
    )


def main() -> None:
    """Read the command line and measure."""
    try:
        asked = read_arguments(sys.argv[1:])
    except UserError as problem:
        exit_with(problem)
    run_program(Config(), lambda processes: measure(asked, processes))


if __name__ == "__main__":
    main()
