"""A trained model opened by one process, to be looked at: from a run, one of its checkpoints, or an export."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from model import layout
from model.errors import UserError
from model.hub import local_folder
from model.limoe import LIMoE
from model.pretrained import load_pretrained
from model.tokenizer import Tokenizer
from trainer.checkpoint.files import CONFIG, TOKENIZER, checkpoint_itself
from trainer.checkpoint.identity import check_identity
from trainer.checkpoint.load import check_sound, check_weights, checkpoint_of, load_state, read_progress, reading
from trainer.config.schema import Config
from trainer.config.stored import exported_config, stored_config
from trainer.data.sources import load_tokenizer
from trainer.distributed.device import choose_device
from trainer.distributed.processes import ALONE
from trainer.engine.state import WEIGHTS


@dataclass(frozen=True)
class Trained:
    """model: in float32 and evaluation mode, dropping no token; config: its run's; name: such as `demo, step 1200`."""

    model: LIMoE
    tokenizer: Tokenizer
    config: Config
    name: str
    step: int | None
    """None for an export, which may be of several steps."""


def place_of(run: str, what: str = "run") -> Path:
    """The export or the checkpoint that an argument names; of a run directory, its newest complete checkpoint.

    An export may be on the Hugging Face Hub, as for `model.load`. what: the argument, for messages. Raises UserError for a place
    that has neither.
    """
    folder = local_folder(run, what)
    return folder if is_export_alone(folder) else checkpoint_of(run)


def open_trained(place: Path, kind: str, overrides: list[str]) -> Trained:
    """The model of a checkpoint or an export; kind, overrides: as of `open_checkpoint`.

    Raises UserError for one that cannot be opened, and for a kind of weights that it does not have.
    """
    if not is_export_alone(place):
        return open_checkpoint(place, kind, overrides)
    check_export(place, kind, overrides)
    return open_export(place, overrides)


def check_export(folder: Path, kind: str, overrides: list[str]) -> None:
    """Raise UserError for a kind of weights that an export does not have, and for overrides of the model's own keys."""
    if kind != WEIGHTS:
        raise UserError(f"weights={kind}: {folder} is an export, which has the weights it was made of; leave weights={kind} out")
    for override in overrides:
        if override.startswith(("model.", "router.")):
            raise UserError(f"'{override}': an exported model cannot be changed; leave it out")


def origin_of(folder: Path, config: Config) -> str:
    """What the weights of an export are, in words."""
    with safe_open(folder / layout.WEIGHTS, "pt") as weights:
        return str((weights.metadata() or {}).get("origin", config.run.name))


def is_export_alone(folder: Path) -> bool:
    """Whether it is an export, and no checkpoint that has been exported into itself."""
    return layout.is_export(folder) and checkpoint_itself(folder) is None


def unfilled(config: Config) -> LIMoE:
    """The model of a run as it is used afterwards, which drops nothing; without values."""
    return LIMoE.without_values(config.model, config.router.without_drops())


def open_checkpoint(checkpoint: Path, kind: str, overrides: list[str]) -> Trained:
    """The weights of a kind (trainer.checkpoint.load.check_weights) in a checkpoint; overrides: keys of the run's configuration.

    Raises UserError for a damaged checkpoint, and for keys that would turn the weights into another model.
    """
    with reading(checkpoint):
        check_weights(kind, checkpoint)
        config = stored_config(checkpoint / CONFIG, overrides)
        check_identity(checkpoint, config, "open a run that was trained this way")
        check_sound(checkpoint, ALONE)
        tokenizer, step = load_tokenizer(config, checkpoint / TOKENIZER), read_progress(checkpoint).step
        model = unfilled(config)
        model.load_state_dict(dict(load_state(checkpoint, model, None, (kind,)).tensors(kind)), assign=True)
    return Trained(_ready(model, config), tokenizer, config, f"{config.run.name}, step {step}", step)


def open_export(folder: Path, overrides: list[str]) -> Trained:
    """An exported model. Raises UserError for a damaged one."""
    config = exported_config(folder, overrides)
    opened = load_pretrained(folder, "cpu", torch.float32)
    return Trained(_ready(opened.module, config), opened.tokenizer, config, origin_of(folder, config), None)


def _ready(model: LIMoE, config: Config) -> LIMoE:
    model = model.to(choose_device(config.run.device, 0), torch.float32)
    return model.eval().requires_grad_(False)
