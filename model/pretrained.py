"""A trained model on one machine, with the preprocessing it was evaluated with. The one part of model/ that reads files."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
import yaml
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.config import AuxiliaryConfig, ModelConfig, RouterConfig
from model.errors import UserError
from model.limoe import LIMoE
from model.paths import user_path
from model.preprocess import REDUCING_GAP, centre_crop, decode_image, normalise, to_rgb
from model.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer.model"
FILES = (WEIGHTS, CONFIG, TOKENIZER)
"""What an export is made of."""

BATCH_SIZE = 64
"""Images or texts embedded at once, unless told otherwise."""

Picture = Image.Image | Path | str | bytes
"""An image: opened by Pillow, the path of a file, or a file's content."""
T = TypeVar("T")


class Pretrained:
    """Embeds images and texts in one space. An embedding does not depend on what else is embedded with it."""

    def __init__(self, module: LIMoE, tokenizer: Tokenizer, mean: Sequence[float], std: Sequence[float]) -> None:
        """mean, std: of the pixels, by channel, as in training."""
        self.module = module.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._mean, self._std = list(mean), list(std)

    @property
    def device(self) -> torch.device:
        """Where the model is, and what it gives."""
        return self.module.scale.log_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.module.scale.log_scale.dtype

    @property
    def scale(self) -> float:
        """What training multiplied the cosines with: `softmax(scale * images @ texts.T)` are the probabilities of the texts."""
        return float(self.module.scale())

    def preprocess(self, image: Picture) -> Tensor:
        """The central square as `module` takes it, normalised `[3, H, W]` on the CPU. Raises UserError when it is no image."""
        return normalise(self._crop(image), self._mean, self._std, self.dtype)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 `[n, L]` on the CPU, 0 is padding; a text that is too long loses its end."""
        return self._tokenizer(texts, self.module.config.text_length)

    @torch.no_grad()
    def embed_images(self, images: Iterable[Picture], batch_size: int = BATCH_SIZE) -> Tensor:
        """Unit vectors, float32 `[n, D]` on the model's device. Raises UserError when something is no image."""
        rows = []
        for batch in _batches(images, batch_size):
            pixels = torch.stack([self._crop(image) for image in batch]).to(self.device)
            rows.append(self.module(images=normalise(pixels, self._mean, self._std, self.dtype)).images)
        return self._joined(rows)

    @torch.no_grad()
    def embed_texts(self, texts: Iterable[str], batch_size: int = BATCH_SIZE) -> Tensor:
        """Unit vectors, float32 `[n, D]` on the model's device."""
        if isinstance(texts, str):
            raise TypeError(f"embed_texts takes a list of texts: [{texts!r}]")
        return self._joined(
            [self.module(texts=self.tokenize(batch).to(self.device)).texts for batch in _batches(texts, batch_size)]
        )

    def _crop(self, image: Picture) -> Tensor:
        """The central square as uint8 `[3, H, W]`."""
        size = self.module.config.image_size
        return centre_crop(_read(image, round(REDUCING_GAP * size)), size)

    def _joined(self, rows: list[Tensor]) -> Tensor:
        return torch.cat(rows) if rows else torch.empty(0, self.module.config.embedding, device=self.device)


def load_pretrained(folder: Path, device: str | torch.device, dtype: torch.dtype | None) -> Pretrained:
    """See model.load."""
    folder = user_path(folder)
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: no {name} there; give the folder that `python -m trainer.export run=DIR` wrote (DIR/export)"
            )
    module, mean, std = _build(folder / CONFIG)
    module.load_state_dict(_read_weights(folder / WEIGHTS, module), assign=True)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if tokenizer.vocabulary > module.config.vocabulary:
        raise UserError(
            f"{folder / TOKENIZER} has {tokenizer.vocabulary} pieces, but the model knows {module.config.vocabulary}: "
            f"it belongs to another model; export again"
        )
    return Pretrained(module.to(device, dtype), tokenizer, mean, std)


def _build(path: Path) -> tuple[LIMoE, list[float], list[float]]:
    """The model that a configuration describes, without memory for its weights; mean and standard deviation of the pixels."""
    try:
        values: Any = yaml.safe_load(path.read_text())
        router = dict(values["router"])
        config = ModelConfig(**values["model"])
        # Nothing is dropped, whatever the run was evaluated with: what an image means must not depend on its batch.
        routing = replace(RouterConfig(**router | {"aux": AuxiliaryConfig(**router["aux"])}), eval_capacity_factor=None)
        with torch.device("meta"):
            return LIMoE(config, routing), list(values["data"]["mean"]), list(values["data"]["std"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError, ValueError, ArithmeticError) as problem:
        raise UserError(f"{path}: no configuration of a trained model ({_one_line(problem)}); export the run again") from problem


def _read_weights(path: Path, module: LIMoE) -> dict[str, Tensor]:
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as problem:
        raise UserError(f"{path} is damaged ({_one_line(problem)}): copy it again, or export the run again") from problem
    expected = {name: tuple(parameter.shape) for name, parameter in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if different:
        name = different[0]
        raise UserError(
            f"{path} is not of the model that {CONFIG} beside it describes ({len(different)} tensors differ, such as {name}: "
            f"{found.get(name, 'missing')}, described {expected.get(name, 'nowhere')}): export the run again"
        )
    return weights


def _read(image: Picture, least_side: int) -> Image.Image:
    """An RGB image, decoded as evaluation does it: a large JPEG at a part of its size, no side under `least_side` pixels."""
    if isinstance(image, (str, Path)):
        try:
            return decode_image(Path(image).expanduser().read_bytes(), least_side)
        except OSError as problem:
            raise UserError(f"image {image}: {problem.strerror}") from problem
        except UserError as problem:
            raise UserError(f"image {image}: {problem}") from problem
    if isinstance(image, bytes):
        return decode_image(image, least_side)
    if isinstance(image, JpegImageFile) and image.tile and image.fp:
        return decode_image(_content(image.fp), least_side)  # opened, but not read yet
    return to_rgb(image)


def _content(file: IO[bytes]) -> bytes:
    """All of an open file, which stays where it is."""
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    return content


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _one_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:160]
