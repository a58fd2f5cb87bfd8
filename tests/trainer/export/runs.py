"""A finished run on disk, written without training."""

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch.distributed.checkpoint as dcp
from omegaconf import OmegaConf
from torch import Tensor

from model.limoe import LIMoE
from tests.trainer.data.shards_on_disk import small_tokenizer
from trainer.checkpoint.files import CONFIG, PROGRESS, STATE, TOKENIZER, checkpoint_path, record_of, write_marker
from trainer.checkpoint.progress import TrainingProgress
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
    for step in steps:
        checkpoint = checkpoint_path(run, step)
        checkpoint.mkdir(parents=True)
        state = {f"model/{name}": value for name, value in weights(made, step).items()}
        state |= {f"ema/{name}": value for name, value in weights(made, step + 1).items() if not name.endswith("router.bias")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(state, checkpoint_id=checkpoint / STATE, no_dist=True)
        (checkpoint / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(made)))
        (checkpoint / PROGRESS).write_text(json.dumps(asdict(TrainingProgress(step=step))))
        small_tokenizer(run)
        (run / "t.model").rename(checkpoint / TOKENIZER)
        files = [path for path in checkpoint.rglob("*") if path.is_file()]
        write_marker(checkpoint, {str(path.relative_to(checkpoint)): record_of(path) for path in files})
    return run
