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
from model.precision import float32_parameters
from trainer.checkpoint.files import CONFIG, TOKENIZER, complete_checkpoints
from trainer.checkpoint.load import check_sound, check_weights, checkpoint_of, load_state, read_progress
from trainer.config.checks import check_model
from trainer.config.compose import load_config, to_config
from trainer.config.schema import Config
from trainer.distributed.processes import ALONE
from trainer.distributed.program import exit_with
from trainer.engine.state import EMA, WEIGHTS
from trainer.errors import UserError, did_you_mean

USAGE = "python -m trainer.export run=DIR [output=DIR] [average=last:5] [weights=ema] [dtype=bf16]"
KEYS = ("run", "output", "average", "weights", "dtype")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Export:
    """What a command line asks for. checkpoints: oldest first, several are averaged; kind: of weights, `model` or `ema`."""

    checkpoints: list[Path]
    kind: str
    dtype: str
    output: Path


def read_arguments(arguments: list[str]) -> Export:
    """What a command line means; `--key value` and `--key=value` are read as `key=value`.

    Raises UserError for what is missing or mistyped, or for checkpoints that are not there.
    """
    values = _by_key(arguments)
    if "run" not in values:
        raise UserError(f"say which run to export: {USAGE}")
    newest = checkpoint_of(values["run"])
    checkpoints = [newest] if "average" not in values else _last(values["average"], values["run"])
    dtype = values.get("dtype", "fp32")
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: choose {' or '.join(DTYPES)}")
    kinds = {check_weights(values.get("weights", WEIGHTS), checkpoint) for checkpoint in checkpoints}
    output = Path(values["output"]).expanduser() if values.get("output") else _run_of(newest) / "export"
    return Export(checkpoints, kinds.pop(), dtype, output)


def _by_key(arguments: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    remaining = iter(arguments)
    for argument in remaining:
        key, given, value = argument.removeprefix("--").partition("=")
        if key not in KEYS:
            raise UserError(f"'{argument}': export has no '{key}'{did_you_mean(key, KEYS)}: {USAGE}")
        if key in values:
            raise UserError(f"'{argument}': {key} is given twice")
        values[key] = value if given or not argument.startswith("--") else next(remaining, "")
        if not values[key]:
            raise UserError(f"'{argument}': {key} has no value; write {key}=VALUE")
    return values


def _last(average: str, run: str) -> list[Path]:
    """The checkpoints that `average=last:N` means, oldest first."""
    what, _, number = average.partition(":")
    if what != "last" or not number.isdigit() or int(number) < 1:
        raise UserError(
            f"average={average}: write average=last:N, such as average=last:5, for the mean of the last 5 checkpoints"
        )
    found = complete_checkpoints(Path(run).expanduser())
    if len(found) < int(number):
        raise UserError(
            f"average={average}: {run} holds {len(found)} complete checkpoints; give a run directory with that many "
            f"(checkpoint.keep={number} keeps them) or average fewer"
        )
    return found[-int(number) :]


def _run_of(checkpoint: Path) -> Path:
    return checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def read_weights(export: Export, config: Config) -> dict[str, Tensor]:
    """The weights by their names in the model's state_dict, experts `[E, …]`, float32; the mean, if there are several.

    Raises UserError for a damaged checkpoint, or for one that is of another architecture than the newest.
    """
    with torch.device("meta"):
        model = LIMoE(config.model, config.router)
    mean: dict[str, Tensor] = {}
    for count, checkpoint in enumerate(export.checkpoints, start=1):
        for name, value in load_state(checkpoint, model, None, (export.kind,)).tensors(export.kind):
            mean[name] = mean[name].lerp_(value, 1 / count) if name in mean else value
    return mean


def write_export(export: Export) -> list[str]:
    """Write the export, whole or not at all; returns what is to be told about it.

    Raises UserError when it cannot be written, or when `output` holds something else than an earlier export.
    """
    for checkpoint in export.checkpoints:
        check_sound(checkpoint, ALONE)
    newest = export.checkpoints[-1]
    config = to_config(load_config(newest / CONFIG))
    check_model(config.model, config.router)
    replaced = _holds_export(export.output)
    weights = read_weights(export, config)
    with torch.device("meta"):
        precise = {name for name, _ in float32_parameters(LIMoE(config.model, config.router))}
    for name in weights.keys() - precise:  # one after the other, so that memory never holds both
        weights[name] = weights[name].to(DTYPES[export.dtype])
    origin = describe(export, config)
    partial = export.output.with_name(f".{export.output.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(weights, partial / pretrained.WEIGHTS, {"format": "pt", "origin": origin})
        shutil.copyfile(newest / CONFIG, partial / pretrained.CONFIG)
        shutil.copyfile(newest / TOKENIZER, partial / pretrained.TOKENIZER)
        # safetensors lets nobody else read its file; others get what they get of any file.
        (partial / pretrained.WEIGHTS).chmod((partial / pretrained.CONFIG).stat().st_mode)
        _put_in_place(partial, export.output)
    except (OSError, SafetensorError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise UserError(
            f"the export could not be written to {export.output} ({reason}): mend it or choose another output"
        ) from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    count = sum(value.numel() for value in weights.values())
    return [
        f"{'replaced the export in' if replaced else 'wrote'} {export.output}: {', '.join(pretrained.FILES)}",
        f"{origin}; {len(weights)} tensors, {count:,} parameters, {export.dtype}",
    ]


def describe(export: Export, config: Config) -> str:
    """What the exported weights are, in words."""
    steps = [read_progress(checkpoint).step for checkpoint in export.checkpoints]
    kind = f"moving average of the weights (train.ema={config.train.ema})" if export.kind == EMA else "weights"
    when = f"step {steps[0]}" if len(steps) == 1 else f"steps {', '.join(map(str, steps))}, averaged"
    return f"{config.run.name}: {kind} of {when}"


def _holds_export(output: Path) -> bool:
    """Whether an earlier export lies there. Raises UserError when something else does."""
    if not output.exists():
        return False
    others = [path.name for path in output.iterdir() if path.name not in pretrained.FILES] if output.is_dir() else [output.name]
    if others:
        raise UserError(f"output={output} holds something else ({', '.join(sorted(others)[:3])}): choose another folder")
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
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    try:
        told = write_export(read_arguments(sys.argv[1:]))
    except UserError as problem:
        exit_with(problem)
    print("\n".join(told))


if __name__ == "__main__":
    main()
