"""What a card says about a model and its training, from the run's configuration. No paths: a card is for others."""

import dataclasses
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import trainer
from model.config import ModelConfig, RouterConfig
from model.count import count_parameters
from model.layout import LIBRARY
from trainer.checkpoint.load import read_progress
from trainer.config.keys import KEYS
from trainer.config.schema import Config
from trainer.export.request import Export

SECTIONS = ("model", "router", "data", "parallel", "train", "optim", "schedule", "seed")
"""What of the configuration makes a model what it is."""


def kind_of(config: ModelConfig, router: RouterConfig) -> str:
    """The member of the family, in a sentence."""
    if config.towers == 2:
        return "Two Transformers, one for images and one for texts, trained contrastively as in CLIP (Radford et al. 2021)."
    if not config.expert_layers:
        return "One dense Transformer for images and texts, trained contrastively."
    choice = "experts choose their tokens" if router.choice == "expert" else f"each token passes {router.top_k}"
    return (
        f"A LIMoE (Mustafa et al. 2022): one Transformer for images and texts, trained contrastively, with a sparse mixture of "
        f"{config.experts} experts in {len(config.expert_layers)} of its {config.layers} blocks, of which {choice}."
    )


def model_rows(config: ModelConfig, router: RouterConfig) -> list[list[str]]:
    """(what, value) rows about the architecture."""
    count = count_parameters(config, router)
    return [
        ["parameters", f"{count.total:,}"],
        *([["applied to a token", f"{count.applied:,}"]] if count.applied != count.total else []),
        ["width, blocks, heads", f"{config.width}, {config.layers}, {config.heads}"],
        ["image", f"{config.image_size} x {config.image_size} pixels, patches of {config.patch}: {config.image_tokens} tokens"],
        ["text", f"at most {config.text_length} tokens of {config.vocabulary:,} (SentencePiece)"],
        ["embedding", f"{config.embedding} numbers, L2-normalised"],
    ]


def training_rows(export: Export, config: Config) -> list[list[str]]:
    """(what, value) rows about the training."""
    progress = [read_progress(checkpoint) for checkpoint in export.checkpoints]
    train = config.train
    return [
        ["steps", ", ".join(f"{found.step:,}" for found in progress)],
        ["pairs in a batch", f"{train.batch_size:,}"],
        ["pairs seen", f"{progress[-1].pairs:,}"],
        ["data", "the embedded data set" if config.data.kind != "webdataset" else "image-text pairs in WebDataset shards"],
        ["learning rate", f"{config.optim.lr:g}, {config.schedule.kind}"],
        ["precision", train.precision],
        ["seed", str(config.seed)],
        ["exported by", program()],
    ]


def program() -> str:
    """This program with its version, and the commit of its checkout if it runs from one."""
    checkout = Path(trainer.__file__).parents[1]
    try:
        known = f"{LIBRARY} {version(LIBRARY)}"
    except PackageNotFoundError:
        known = LIBRARY
    if not (checkout / ".git").exists():
        return known
    try:
        asked = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
        return f"{known}, commit {subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()}"
    except (OSError, subprocess.CalledProcessError):  # no git, or a checkout that is not this user's
        return known


def configuration(config: Config) -> str:
    """The sections that made the model, as YAML, without the keys that are paths."""
    values = {name: _plain(getattr(config, name), f"{name}.") for name in SECTIONS}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _plain(value: Any, prefix: str) -> Any:
    if not dataclasses.is_dataclass(value):
        return value
    found = {}
    for field in dataclasses.fields(value):
        key = f"{prefix}{field.name}"
        if key not in KEYS or not KEYS[key].option.path:
            found[field.name] = _plain(getattr(value, field.name), f"{key}.")
    return found
