"""The weights of a checkpoint, or the mean of several, and the model that has them."""

from torch import Tensor

from model.limoe import LIMoE
from model.precision import float32_parameters
from model.trim import Trim, trim
from trainer.checkpoint.load import load_state, read_progress
from trainer.checkpoint.trained import unfilled
from trainer.config.schema import Config
from trainer.engine.state import EMA
from trainer.export.request import DTYPES, Export


def read_weights(export: Export, config: Config) -> dict[str, Tensor]:
    """The weights by their names in the model's state_dict, experts `[E, …]`, in the dtype of the export; the mean of several.

    Raises UserError for a damaged checkpoint, or for one with a different architecture from the newest.
    """
    model = LIMoE.without_values(config.model, config.router)
    mean: dict[str, Tensor] = {}
    for count, checkpoint in enumerate(export.checkpoints, start=1):
        for name, value in load_state(checkpoint, model, None, (export.kind,)).tensors(export.kind):
            mean[name] = mean[name].lerp_(value, 1 / count) if name in mean else value
    precise = {name for name, _ in float32_parameters(model)} | {name for name, _ in model.named_buffers()}
    for name in mean.keys() - precise:  # one after the other, so that both are never in memory
        mean[name] = mean[name].to(DTYPES[export.dtype])
    return mean


def build(config: Config, weights: dict[str, Tensor], kept: Trim | None = None) -> LIMoE:
    """The model as model.load makes it of an export; it shares the weights, but for those of a layer that lost experts."""
    model = unfilled(config)
    model.load_state_dict(weights, assign=True)
    return trim(model, kept or Trim()).eval().requires_grad_(False)


def describe(export: Export, config: Config) -> str:
    """What the exported weights are, in words."""
    steps = [read_progress(checkpoint).step for checkpoint in export.checkpoints]
    kind = f"moving average of the weights (train.ema={config.train.ema})" if export.kind == EMA else "weights"
    when = f"step {steps[0]}" if len(steps) == 1 else f"steps {', '.join(map(str, steps))}, averaged"
    return f"{config.run.name}: {kind} of {when}"
