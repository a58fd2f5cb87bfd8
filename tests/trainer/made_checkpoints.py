"""Checkpoints as a run of one process leaves them, with made-up weights."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch.distributed.checkpoint as dcp
from omegaconf import OmegaConf
from torch import Tensor

from trainer.checkpoint.files import CONFIG, PROGRESS, STATE, TOKENIZER, checkpoint_path, record_of, write_marker
from trainer.checkpoint.progress import TrainingProgress
from trainer.config.schema import Config
from trainer.data.tokenizer import Tokenizer


def write_checkpoint(
    run: Path, step: int, config: Config, weights: Mapping[str, Mapping[str, Tensor]], tokenizer: Tokenizer
) -> Path:
    """A complete checkpoint of a run; weights: by kind (`model`, `ema`), each by the names of the state_dict."""
    checkpoint = checkpoint_path(run, step)
    checkpoint.mkdir(parents=True)
    state = {f"{kind}/{name}": value for kind, of_kind in weights.items() for name, value in of_kind.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=checkpoint / STATE, no_dist=True)
    (checkpoint / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    (checkpoint / PROGRESS).write_text(json.dumps(asdict(TrainingProgress(step=step))))
    (checkpoint / TOKENIZER).write_bytes(tokenizer.model)
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    write_marker(checkpoint, {str(path.relative_to(checkpoint)): record_of(path) for path in files})
    return checkpoint
