"""Write a trained model for others to use: `python -m trainer.export run=DIR [average=last:5] [weights=ema] [dtype=bf16]`.

`run` is a run directory, whose newest complete checkpoint is taken, or a checkpoint. `output=DIR` (default: export in the run
directory) gets one model.safetensors with the names and shapes of the model's state_dict, config.yaml and tokenizer.model;
`model.load` reads it. `average=last:5` takes the mean of the last five checkpoints, `weights=ema` the moving average that
train.ema kept. One process; no DeepSpeed; as much memory as the model has in float32, with `average` twice as much.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from model import pretrained
from model.limoe import LIMoE
from model.paths import user_path
from model.precision import float32_parameters
from trainer.checkpoint.files import CONFIG, TOKENIZER, complete_checkpoints
from trainer.checkpoint.identity import check_identity
from trainer.checkpoint.load import (
    WEIGHTS_ARGUMENT,
    check_sound,
    check_weights,
    checkpoint_of,
    load_state,
    read_progress,
    reading,
    take_newest,
)
from trainer.config.arguments import Argument, Command
from trainer.config.checks import check_model
from trainer.config.compose import load_config, to_config
from trainer.config.schema import Config
from trainer.distributed.processes import ALONE
from trainer.distributed.program import exit_with
from trainer.engine.state import EMA, WEIGHTS
from trainer.errors import UserError, reason
from trainer.output import reader_may_leave

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COMMAND = Command(
    "trainer.export",
    "Write a trained model for others to use: one model.safetensors with the names and shapes of the model's state_dict, "
    "config.yaml and tokenizer.model, which model.load reads. One process; as much memory as the model has in float32, "
    "with `average` twice as much.",
    (
        Argument("run", "DIR", "a run directory (its newest complete checkpoint), or a checkpoint of one", required=True),
        Argument("output", "DIR", "where to write (default: export in the run directory); an earlier export is replaced"),
        Argument("average", "last:N", "the mean of the last N checkpoints"),
        WEIGHTS_ARGUMENT,
        Argument("dtype", "TYPE", "fp32 (the default) or bf16", choices=tuple(DTYPES)),
    ),
    word="run",
)


@dataclass(frozen=True)
class Export:
    """What a command line asks for. checkpoints: oldest first, several are averaged; kind: of weights, `model` or `ema`."""

    checkpoints: list[Path]
    kind: str
    dtype: str
    output: Path


def read_arguments(arguments: list[str]) -> Export:
    """What a command line means. Raises UserError for what is missing or mistyped, or for checkpoints that are not there."""
    values = COMMAND.read(arguments).values
    newest = checkpoint_of(values["run"])
    checkpoints = [newest] if "average" not in values else _last(values["average"], values["run"])
    with reading(*checkpoints):
        kinds = {check_weights(values.get("weights", WEIGHTS), checkpoint) for checkpoint in checkpoints}
    output = user_path(values["output"], "output").absolute() if "output" in values else _run_of(newest) / "export"
    return Export(checkpoints, kinds.pop(), values.get("dtype", "fp32"), output)


def _last(average: str, run: str) -> list[Path]:
    """The checkpoints that `average=last:N` means, oldest first."""
    what, _, number = average.partition(":")
    if what != "last" or not number.isdigit() or int(number) < 1:
        raise UserError(
            f"average={average}: write average=last:N, such as average=last:5, for the mean of the last 5 checkpoints"
        )
    found = complete_checkpoints(user_path(run, "run"))
    if len(found) < int(number):
        raise UserError(
            f"average={average}: {run} has {len(found)} complete checkpoints; give a run directory that has enough "
            f"(checkpoint.keep={number} keeps that many), or average fewer"
        )
    return found[-int(number) :]


def _run_of(checkpoint: Path) -> Path:
    return checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def read_weights(export: Export, config: Config) -> dict[str, Tensor]:
    """The weights by their names in the model's state_dict, experts `[E, …]`, float32; the mean, if there are several.

    Raises UserError for a damaged checkpoint, or for one with a different architecture from the newest.
    """
    with torch.device("meta"):
        model = LIMoE(config.model, config.router)
    mean: dict[str, Tensor] = {}
    for count, checkpoint in enumerate(export.checkpoints, start=1):
        for name, value in load_state(checkpoint, model, None, (export.kind,)).tensors(export.kind):
            mean[name] = mean[name].lerp_(value, 1 / count) if name in mean else value
    return mean


def write_export(export: Export) -> list[str]:
    """Write the export atomically; returns lines that describe it.

    Raises UserError when it cannot be written, or when `output` contains anything but an earlier export.
    """
    for checkpoint in export.checkpoints:
        check_sound(checkpoint, ALONE)
    newest = export.checkpoints[-1]
    config = to_config(load_config(newest / CONFIG))
    check_model(config)
    for checkpoint in export.checkpoints[:-1]:
        check_identity(checkpoint, config, "average checkpoints of one model")
    replaced = _holds_export(export.output)
    weights = read_weights(export, config)
    with torch.device("meta"):
        model = LIMoE(config.model, config.router)
    precise = {name for name, _ in float32_parameters(model)} | {name for name, _ in model.named_buffers()}
    for name in weights.keys() - precise:  # one after the other, so that both are never in memory
        weights[name] = weights[name].to(DTYPES[export.dtype])
    origin = describe(export, config)
    partial = export.output.with_name(f".{export.output.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(weights, partial / pretrained.WEIGHTS, {"format": "pt", "origin": origin})
        shutil.copyfile(newest / CONFIG, partial / pretrained.CONFIG)
        shutil.copyfile(newest / TOKENIZER, partial / pretrained.TOKENIZER)
        # safetensors makes its file private; use the permissions of any other file.
        (partial / pretrained.WEIGHTS).chmod((partial / pretrained.CONFIG).stat().st_mode)
        _put_in_place(partial, export.output)
    except (OSError, SafetensorError) as problem:
        raise UserError(
            f"the export could not be written to {export.output} ({reason(problem)}): fix this or choose another output"
        ) from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    count = sum(parameter.numel() for parameter in model.parameters())
    return [
        f"{'replaced the export in' if replaced else 'wrote'} {export.output}: {', '.join(pretrained.FILES)}",
        f"{origin}; {len(weights)} tensors, {count:,} parameters, {export.dtype}",
    ]


def export_newest(arguments: list[str]) -> list[str]:
    """`write_export` for a command line, repeated if the training run deletes the checkpoint meanwhile."""

    def write(export: Export) -> list[str]:
        with reading(*export.checkpoints):
            return write_export(export)

    return take_newest(lambda: read_arguments(arguments), write)


def describe(export: Export, config: Config) -> str:
    """What the exported weights are, in words."""
    steps = [read_progress(checkpoint).step for checkpoint in export.checkpoints]
    kind = f"moving average of the weights (train.ema={config.train.ema})" if export.kind == EMA else "weights"
    when = f"step {steps[0]}" if len(steps) == 1 else f"steps {', '.join(map(str, steps))}, averaged"
    return f"{config.run.name}: {kind} of {when}"


def _holds_export(output: Path) -> bool:
    """Whether an earlier export is there. Raises UserError if something else is."""
    if not output.exists():
        return False
    others = [path.name for path in output.iterdir() if path.name not in pretrained.FILES] if output.is_dir() else [output.name]
    if others:
        raise UserError(f"output={output} contains other files ({', '.join(sorted(others)[:3])}): choose another folder")
    return any(output.iterdir())


def _put_in_place(partial: Path, output: Path) -> None:
    """Rename the folder; an earlier export is moved away before and deleted after."""
    earlier = output.with_name(f".{output.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if output.exists():
        output.rename(earlier)
    try:
        partial.rename(output)
    except OSError:
        if earlier.exists():
            earlier.rename(output)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def main() -> None:
    """Read the command line and export."""
    try:
        told = export_newest(sys.argv[1:])
    except UserError as problem:
        exit_with(problem)
    with reader_may_leave():
        print("\n".join(told))


if __name__ == "__main__":
    main()
