"""What an export is made of, as files, and what its description says. Laid out like a model on the Hugging Face Hub.

    model.safetensors          the weights, by the names of the model's state_dict
    config.json                the architecture, the router and the pixels' normalisation: what `model.load` needs
    tokenizer.model            SentencePiece
    preprocessor_config.json   the same preparation of images in the words of transformers' CLIPImageProcessor
    README.md                  the card
    config.yaml                the whole configuration of the run, with its paths

Exports from before config.json have the same sections in their config.yaml, which is read instead.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from model.config import TRIMMED, AuxiliaryConfig, BiasConfig, ModelConfig, RouterConfig
from model.errors import UserError, reason
from model.preprocess import WHITE
from model.trim import Trim

WEIGHTS = "model.safetensors"
ARCHITECTURE = "config.json"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer.model"
PREPROCESSOR = "preprocessor_config.json"
CARD = "README.md"
FILES = (WEIGHTS, CONFIG, TOKENIZER)
"""What every export has had from the first."""
LOADED = (WEIGHTS, ARCHITECTURE, CONFIG, TOKENIZER)
"""What is read of an export, the first of the two descriptions that is there. Weights are never unpickled."""

MODEL_TYPE = "limoe"
LIBRARY = "limoe-trainer"
FORMAT = 1
"""Of the exports that this version writes, and the newest that it reads."""
BICUBIC = 3  # of Pillow, by whose numbers transformers calls the filters


@dataclass(frozen=True)
class Description:
    """A model without its weights. router: drops nothing, whatever the run was evaluated with; kept: what was left of it.

    mean, std: of the pixels, by channel, as in training; background: RGB, 0 to 255, shown through transparent parts.
    """

    model: ModelConfig
    router: RouterConfig
    kept: Trim
    mean: list[float]
    std: list[float]
    background: list[int]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Description":
        """From the sections `model`, `router` and `data` of a configuration, which may have others.

        Raises LookupError, TypeError or ValueError for anything else.
        """
        router = dict(values["router"])
        architecture = dict(values["model"])
        kept = Trim.read(architecture.pop(TRIMMED, {}))
        nested = {"aux": AuxiliaryConfig(**router["aux"]), "bias": BiasConfig(**router.get("bias", {}))}
        data = values["data"]
        return cls(
            ModelConfig(**architecture),
            RouterConfig(**router | nested).without_drops(),
            kept,
            list(data["mean"]),
            list(data["std"]),
            list(data.get("background", WHITE)),
        )


def is_export(folder: Path) -> bool:
    """Whether `python -m trainer.export` has written there."""
    described = (folder / ARCHITECTURE).is_file() or (folder / CONFIG).is_file()
    return described and all((folder / name).is_file() for name in (WEIGHTS, TOKENIZER))


def check_complete(folder: Path, name: str) -> None:
    """Raise UserError for a folder that is no export; name: what the user calls it."""
    described = ARCHITECTURE if (folder / ARCHITECTURE).is_file() else CONFIG
    for file in (WEIGHTS, described, TOKENIZER):
        if not (folder / file).is_file():
            raise UserError(
                f"{name}: no {file} there; give the folder that `python -m trainer.export run=DIR` wrote (DIR/export)"
            )


def check_ours(folder: Path, name: str) -> None:
    """Raise UserError for a folder with the config.json of another library's model, or of a newer version of ours."""
    values = read_architecture(folder)
    if values is None:
        return
    found = values.get("model_type")
    if found != MODEL_TYPE:
        architectures = values.get("architectures")
        what = str(architectures[0]) if isinstance(architectures, list) and architectures else "model of another library"
        of_type = f", model_type={found}" if isinstance(found, str) else ""
        raise UserError(f"{name} holds a {what}{of_type}, and no export of `python -m trainer.export`")
    version = values.get("format_version")
    if not isinstance(version, int) or version > FORMAT:
        raise UserError(
            f"{name} was exported by a newer version of this project (format_version={version}, known here: {FORMAT}): update it"
        )


def read_architecture(folder: Path) -> dict[str, Any] | None:
    """The config.json of a folder, None without one. Raises UserError for one that cannot be read."""
    path = folder / ARCHITECTURE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not a mapping")
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} is damaged ({reason(problem)}): copy it again, or export the run again") from problem
    return values


def read_description(folder: Path) -> Description:
    """What an export's description says. Raises UserError for one that is not that of a trained model."""
    path = folder / ARCHITECTURE
    try:
        values: Any = read_architecture(folder)
        if values is None:
            path = folder / CONFIG
            values = yaml.safe_load(path.read_text())
        return Description.of(values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError, ValueError, ArithmeticError) as problem:
        raise UserError(
            f"{path} is not the configuration of a trained model ({reason(problem)}); export the run again"
        ) from problem


def architecture(values: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config.json of an export, from a run's configuration as plain values; dtype: of the weights, such as `bfloat16`."""
    # An old run may lack the last of them.
    data = {name: values["data"][name] for name in ("mean", "std", "background") if name in values["data"]}
    return {
        "architectures": ["LIMoE"],
        "model_type": MODEL_TYPE,
        "library_name": LIBRARY,
        "format_version": FORMAT,
        "torch_dtype": dtype,
        "model": values["model"],
        "router": values["router"],
        "data": data,
    }


def preprocessor(described: Description) -> dict[str, Any]:
    """The preprocessor_config.json of an export."""
    size = described.model.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": described.mean,
        "image_std": described.std,
    }
