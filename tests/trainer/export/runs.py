"""A finished run on disk, written without training."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from model.limoe import LIMoE
from tests.trainer.data.shards_on_disk import small_tokenizer
from tests.trainer.made_checkpoints import write_checkpoint
from trainer.config.schema import Config


def config() -> Config:
    """Two blocks, the second with eight experts."""
    made = Config()
    made.model.width, made.model.mlp, made.model.embedding, made.model.layers = 16, 24, 8, 2
    made.model.expert_layers, made.model.image_size, made.model.patch, made.model.vocabulary = [1], 16, 8, 200
    made.run.name, made.train.ema = "photos", 0.9
    return made


def initial(made: Config, seed: int) -> dict[str, Tensor]:
    """Weights that nobody has trained."""
    return dict(LIMoE(made.model, made.router).initialise(seed).state_dict())


def write_run(
    run: Path, made: Config, steps: tuple[int, ...], weights: Callable[[Config, int], dict[str, Tensor]] = initial
) -> Path:
    """A run with a complete checkpoint for each step, which has the weights of seed `step` and averages of seed `step + 1`."""
    run.mkdir(parents=True, exist_ok=True)
    tokenizer = small_tokenizer(run)
    (run / "t.model").unlink()
    for step in steps:
        average = {name: value for name, value in weights(made, step + 1).items() if not name.endswith("router.bias")}
        write_checkpoint(run, step, made, {"model": weights(made, step), "ema": average}, tokenizer)
    return run
