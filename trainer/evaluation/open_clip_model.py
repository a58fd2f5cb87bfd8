"""Models of open_clip, judged like ours. https://github.com/mlfoundations/open_clip; an optional extra, `open-clip`."""

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from model.paths import user_path
from model.preprocess import normalise
from trainer.errors import UserError, check_extra, did_you_mean, reason

PLACES = ("local-dir:", "hf-hub:")
"""Names of models that bring their weights along."""
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class SquareImage:
    """The steps of open_clip's own transform that end with a picture of the model's size."""

    steps: Sequence[Any]

    def __call__(self, image: Image.Image) -> Tensor:
        """uint8 `[3, size, size]`."""
        for step in self.steps:
            image = step(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class OpenClip:
    """A model with what prepares its input. image_size: side in pixels; text_length: tokens; mean, std: of the pixels."""

    model: Any
    tokenizer: Any
    crop: SquareImage
    image_size: int
    text_length: int
    mean: Sequence[float]
    std: Sequence[float]
    dtype: torch.dtype

    def tokenize(self, texts: list[str], length: int) -> Tensor:
        """Token ids int64 `[n, length]`."""
        return self.tokenizer(texts, context_length=length)

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """uint8 `[b, 3, H, W]` -> float32 `[b, D]`, unit vectors."""
        return self.model.encode_image(self._normalised(images), normalize=True).float()

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """uint8 `[b, 3, H, W]` -> float32 `[b, width]`: before the projection where the image tower has one apart."""
        with _without_projection(self.model.visual):
            return self.model.encode_image(self._normalised(images)).float()

    @torch.no_grad()
    def texts(self, tokens: Tensor) -> Tensor:
        """int64 `[b, T]` -> float32 `[b, D]`, unit vectors."""
        return self.model.encode_text(tokens, normalize=True).float()

    def _normalised(self, images: Tensor) -> Tensor:
        return normalise(images, self.mean, self.std, self.dtype)


def load_open_clip(asked: str, device: torch.device, dtype: torch.dtype) -> OpenClip:
    """The model that `open_clip=NAME:WEIGHTS` means: a file, or a tag of open_clip; or `local-dir:FOLDER`, `hf-hub:NAME`.

    Raises UserError without the package, for an unknown name, and for weights that cannot be loaded.
    """
    name, weights = _name_and_weights(asked)
    check_extra("open_clip", "open-clip", f"open_clip={asked} needs open_clip_torch")
    try:
        import open_clip
    except (ImportError, RuntimeError) as problem:  # such as torchvision's, when it was built for another torch
        raise UserError(f"open_clip is installed, but cannot be imported: {reason(problem)}") from problem
    if weights is not None:
        _check_known(open_clip, asked, name, weights)
    try:
        model, transform = open_clip.create_model_from_pretrained(name, weights, precision=PRECISIONS[dtype], device=device)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as problem:  # a file of any kind, or what a server answers
        # torch's own line would have the file run whatever it contains.
        why = "not a file of weights" if isinstance(problem, pickle.UnpicklingError) else reason(problem).rstrip(":")
        remedy = f"give the weights of a {name}" if weights else "check the place"
        raise UserError(f"open_clip={asked} cannot be loaded ({why}): {remedy}") from problem
    config = model.visual.preprocess_cfg
    size = config["size"]
    height, width = size if isinstance(size, Sequence) else (size, size)
    if height != width:
        raise UserError(f"open_clip={asked} takes images of {width} x {height} pixels; only square ones are read here")
    *steps, _, _ = transform.transforms  # the last two make floats of the picture's bytes, and normalise
    length = getattr(model, "context_length", None) or tokenizer.context_length
    model.eval().requires_grad_(False)
    return OpenClip(model, tokenizer, SquareImage(steps), height, length, config["mean"], config["std"], dtype)


def _check_known(open_clip: Any, asked: str, name: str, weights: str) -> None:
    """Raise UserError for a name, or a tag, that open_clip does not have."""
    models = open_clip.list_models()
    if name not in models:
        raise UserError(f"open_clip={asked}: open_clip has no model {name}{did_you_mean(name, models)}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights not in tags and not Path(weights).is_file():
        known = f"tags such as {tags[0]}" if tags else "no tags"
        raise UserError(f"open_clip={asked}: {weights} is no file, and for weights of {name} open_clip has {known}")


def _name_and_weights(asked: str) -> tuple[str, str | None]:
    for place in PLACES:
        if asked.startswith(place):
            where = asked.removeprefix(place)
            return (f"{place}{user_path(where, 'open_clip')}" if place == PLACES[0] else asked), None
    name, colon, weights = asked.partition(":")
    if not (name and colon and weights):
        raise UserError(f"open_clip={asked}: write NAME:WEIGHTS, such as ViT-B-32:PATH, or {PLACES[0]}FOLDER")
    path = user_path(weights, "open_clip")
    return name, str(path) if path.is_file() else weights


@contextmanager
def _without_projection(tower: Any) -> Iterator[None]:
    projection = getattr(tower, "proj", None)
    if not isinstance(projection, nn.Parameter):
        yield
        return
    tower.proj = None
    try:
        yield
    finally:
        tower.proj = projection
