"""Checkpoints as a run of one process leaves them, with made-up weights; and small runs, with data beside them."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch.distributed.checkpoint as dcp
from omegaconf import OmegaConf
from torch import Tensor

from model.limoe import LIMoE
from tests.trainer.data.shards_on_disk import jpeg, small_tokenizer, write_shard
from trainer.checkpoint.files import CONFIG, PROGRESS, STATE, TOKENIZER, checkpoint_path, record_of, write_marker
from trainer.checkpoint.progress import TrainingProgress
from trainer.config.schema import Config
from trainer.data.tokenizer import Tokenizer

EACH, EXPERTS = 6, 2


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


def write_run(run: Path, expert_layers: list[int], steps: tuple[int, ...] = (10, 20)) -> Path:
    """A run with checkpoints of random weights, and data beside it: 8 pairs, and 2 classes of 6 pictures."""
    data = run.parent / "data"
    (data / "classes" / "test").mkdir(parents=True, exist_ok=True)
    write_shard(data / "val-0.tar", [{"jpg": jpeg(n), "txt": f"picture {n % 2} of a small set"} for n in range(8)])
    write_shard(data / "classes" / "test" / "0.tar", [{"jpg": jpeg(n), "cls": str(n // EACH)} for n in range(2 * EACH)])
    (data / "classes" / "classnames.txt").write_text("small\nset\n")
    (data / "classes" / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
    config = Config()
    config.model.width, config.model.mlp, config.model.embedding, config.model.layers = 16, 24, 8, 2
    config.model.expert_layers, config.model.experts, config.model.vocabulary = expert_layers, EXPERTS, 200
    config.model.image_size, config.model.patch = 16, 8
    config.data.kind, config.data.val, config.eval.zeroshot = "webdataset", str(data / "val-0.tar"), str(data / "classes")
    config.run.name, config.run.device, config.data.max_bad_share = "photos", "cpu", 1.0
    for step in steps:
        weights = LIMoE(config.model, config.router).initialise(step).state_dict()
        write_checkpoint(run, step, config, {"model": weights}, small_tokenizer(data))
    return run
