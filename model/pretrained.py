"""A trained model on one machine, with the preprocessing it was evaluated with."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.errors import UserError, reason
from model.hub import is_on_hub, local_folder
from model.layout import CONFIG as CONFIG
from model.layout import FILES as FILES
from model.layout import TOKENIZER as TOKENIZER
from model.layout import WEIGHTS as WEIGHTS
from model.layout import Description, check_complete, check_ours, read_description
from model.limoe import LIMoE
from model.pictures import Picture, kind_of_object, read_picture
from model.preprocess import REDUCING_GAP, WHITE, centre_crop, normalise
from model.tokenizer import Tokenizer
from model.trim import only, trim

BATCH_SIZE = 64
"""Images or texts embedded at once by default."""

T = TypeVar("T")


class Pretrained:
    """Embeds images and texts in one space. An embedding does not depend on what else is embedded with it."""

    def __init__(
        self,
        module: LIMoE,
        tokenizer: Tokenizer,
        mean: Sequence[float],
        std: Sequence[float],
        background: Sequence[int] = WHITE,
        modality: str | None = None,
    ) -> None:
        """mean, std: of the pixels, by channel, as in training; background: RGB, 0 to 255, shown through transparent parts.

        modality: the only one that the module still has, None for both.
        """
        self.module = module.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._mean, self._std = list(mean), list(std)
        self._background = tuple(background)
        self.modality = modality

    @property
    def tokenizer(self) -> Tokenizer:
        """What `tokenize` and `embed_texts` use."""
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        """The device of the model and of its results."""
        return self.module.scale.log_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in."""
        return next(self.module.heads.parameters()).dtype

    @property
    def scale(self) -> float:
        """What training multiplied the cosines with: `softmax(scale * images @ texts.T)` are the probabilities of the texts."""
        return float(self.module.scale())

    @property
    def bias(self) -> float | None:
        """What training with the sigmoid loss added to them, None after another.

        `sigmoid(scale * images @ texts.T + bias)` are the probabilities of each image and text to belong together.
        """
        return None if self.module.bias is None else float(self.module.bias())

    def preprocess(self, image: Picture) -> Tensor:
        """The central square as `module` takes it, normalised `[3, H, W]` on the CPU. Errors: as `embed_images`."""
        return normalise(self._crop(image), self._mean, self._std, self.dtype)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 `[n, L]` on the CPU, 0 is padding; a text that is too long loses its end. Errors: as `embed_texts`."""
        return self._tokenizer(list(_checked_texts(texts, "tokenize")), self.module.config.text_length)

    @torch.no_grad()
    def embed_images(self, images: Iterable[Picture], batch_size: int = BATCH_SIZE) -> Tensor:
        """Unit vectors, float32 `[n, D]` on the model's device. What an image can be, see model.pictures.Picture.

        Raises UserError for a file that is not an image, and if the export holds only text; TypeError or ValueError for any other
        object.
        """
        self.check_holds("image")
        _check_list(images, "embed_images", "images")
        rows = []
        for batch in _batches(images, batch_size):
            pixels = torch.stack([self._crop(image) for image in batch]).to(self.device)
            rows.append(self.module(images=normalise(pixels, self._mean, self._std, self.dtype)).images)
        return self._joined(rows)

    @torch.no_grad()
    def embed_texts(self, texts: Iterable[str], batch_size: int = BATCH_SIZE) -> Tensor:
        """Unit vectors, float32 `[n, D]` on the model's device.

        Raises TypeError for anything but a list of texts, UserError if the export holds only images.
        """
        self.check_holds("text")
        batches = _batches(_checked_texts(texts, "embed_texts"), batch_size)
        return self._joined([self.module(texts=self.tokenize(batch).to(self.device)).texts for batch in batches])

    def check_holds(self, modality: str) -> None:
        """Raise UserError if a trimmed export has left this modality, "image" or "text", out."""
        if self.modality not in (None, modality):
            raise UserError(only(self.modality))

    def _crop(self, image: Picture) -> Tensor:
        """The central square as uint8 `[3, H, W]`."""
        size = self.module.config.image_size
        return centre_crop(read_picture(image, round(REDUCING_GAP * size), self._background), size)

    def _joined(self, rows: list[Tensor]) -> Tensor:
        return torch.cat(rows) if rows else torch.empty(0, self.module.config.embedding, device=self.device)


def load_pretrained(place: str | os.PathLike[str], device: str | torch.device, dtype: torch.dtype | None) -> Pretrained:
    """See model.load."""
    folder = local_folder(place)
    name = str(place) if is_on_hub(place) else str(folder)
    check_ours(folder, name)
    check_complete(folder, name)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype={dtype!r} must be a floating-point dtype of torch, such as torch.bfloat16, or None")
    described = read_description(folder)
    module = _build(described, folder)
    module.load_state_dict(_read_weights(folder / WEIGHTS, module), assign=True)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if tokenizer.vocabulary > module.config.vocabulary:
        raise UserError(
            f"{folder / TOKENIZER} has {tokenizer.vocabulary} pieces, but the model has room for {module.config.vocabulary}: "
            f"it belongs to another model; export the run again"
        )
    try:
        module = module.to(device, dtype)
    except (RuntimeError, AssertionError) as problem:  # torch without CUDA fails an assertion
        raise UserError(f"device={device} cannot be used ({reason(problem)}): choose another, such as cpu") from problem
    return Pretrained(module, tokenizer, described.mean, described.std, described.background, described.kept.modality)


def _build(described: Description, folder: Path) -> LIMoE:
    """The model that a description means, without memory for its weights."""
    try:
        return trim(LIMoE.without_values(described.model, described.router), described.kept)
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as problem:
        raise UserError(f"{folder} describes no model that can be built ({reason(problem)}); export the run again") from problem


def _read_weights(path: Path, module: LIMoE) -> dict[str, Tensor]:
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as problem:
        raise UserError(f"{path} is damaged ({reason(problem)}): copy it again, or export the run again") from problem
    expected = {name: tuple(parameter.shape) for name, parameter in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if different:
        name = different[0]
        raise UserError(
            f"{path} does not belong to the model that is described beside it ({len(different)} tensors differ, such as {name}: "
            f"{found.get(name, 'missing')} in the file, {expected.get(name, 'missing')} in the model): export the run again"
        )
    return weights


def _checked_texts(texts: Iterable[str], function: str) -> Iterator[str]:
    _check_list(texts, function, "texts")
    return (_checked_text(text, place, function) for place, text in enumerate(texts))


def _checked_text(text: object, place: int, function: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{function} takes a list of texts, but number {place} of it is {kind_of_object(text)}")
    return text


def _check_list(items: object, function: str, what: str) -> None:
    """Raise TypeError for a single image or text instead of several, and for what cannot be iterated over."""
    # An array of 4 dimensions is a list of images, of one (an object array or a column of a table) perhaps of paths or texts.
    is_one_image = getattr(items, "ndim", None) in (0, 2, 3)
    if isinstance(items, (str, bytes, bytearray, memoryview)) or hasattr(items, "read") or is_one_image:
        shown = repr(items) if isinstance(items, str) else "it"
        raise TypeError(f"{function} takes a list of {what}, even for a single one: [{shown}]")
    if not isinstance(items, Iterable):
        raise TypeError(f"{function} takes a list of {what}, not {kind_of_object(items)}")


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"batch_size={size!r} must be an integer of at least 1")
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
