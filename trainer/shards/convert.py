"""A sample as it goes into a shard: its image decoded once, and made smaller if it is large."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from model import preprocess
from trainer.data.shards.captions import CaptionRule, NoCaption, classes_of, label_of, read_captions
from trainer.data.shards.images import decode_image, image_bytes
from trainer.data.shards.names import IMAGES
from trainer.data.shards.samples import Sample, Unusable
from trainer.errors import reason
from trainer.shards.unfit import (
    BAD_LABEL,
    NO_CAPTION,
    NO_IMAGE,
    TOO_LARGE,
    TOO_NARROW,
    TOO_SMALL,
    UNDECODABLE,
    UNENCODABLE,
    Unfit,
)

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2", "PPM": "ppm"}
"""Of images by Pillow's name for their format, where it is not the name in lower case."""
ENCODED = {"jpeg": ("JPEG", "jpg"), "webp": ("WEBP", "webp"), "png": ("PNG", "png")}
"""What images can be written as: Pillow's name and the extension."""
LABELS = ("cls", "npy")


@dataclass(frozen=True)
class Wish:
    """What to do with a sample.

    short_side: pixels, None to leave every image as it is; format: of ENCODED, and its quality from 1 to 100, for images that are
    made smaller; min_side, max_aspect: of the images to keep; background: see model.preprocess; metadata: keep what else there
    is, such as .json.
    """

    short_side: int | None = 256
    format: str = "jpeg"
    quality: int = 95
    min_side: int = 1
    max_aspect: float | None = None
    background: tuple[int, int, int] = preprocess.WHITE
    metadata: bool = True


@dataclass(frozen=True)
class Converted:
    """The files of a sample by extension, how many captions it has, and whether its image was made smaller."""

    files: dict[str, bytes]
    captions: int
    resized: bool


def convert(sample: Sample, rule: CaptionRule, wish: Wish) -> Converted:
    """A sample as the loader would read it: its image, its captions as the lines of a .txt, its label. Raises Unfit."""
    captions = _captions(sample, rule)
    try:
        image = image_bytes(sample)
    except Unusable as problem:
        raise Unfit(NO_IMAGE, str(problem)) from None
    extension, content, resized = fit_image(image, wish)
    others = {
        name: file
        for name, file in sample.files.items()
        if file is not image and name.rpartition(".")[2] not in (*IMAGES, "txt") and (wish.metadata or name in LABELS)
    }
    texts = {"txt": "\n".join(captions).encode()} if captions else {}
    return Converted({**others, extension: content, **texts}, len(captions), resized)


def _captions(sample: Sample, rule: CaptionRule) -> list[str]:
    """All captions; there may be none where there is a label."""
    try:
        return read_captions(sample, rule)
    except NoCaption as problem:
        if not _is_labelled(sample):
            raise Unfit(NO_CAPTION, str(problem).removeprefix(f"{NO_CAPTION}: ")) from None
        return []


def _is_labelled(sample: Sample) -> bool:
    try:
        return label_of(sample) >= 0 or classes_of(sample) is not None
    except Unusable as problem:
        raise Unfit(BAD_LABEL, str(problem)) from None


def fit_image(content: bytes, wish: Wish) -> tuple[str, bytes, bool]:
    """Extension and content of an image file, and whether it was made smaller; if not, it is unchanged. Raises Unfit."""
    extension, size = _look(content)
    # Also where nothing is resized: a file that cannot be decoded to its end would end up in training.
    least_side = 1 if wish.short_side is None else math.ceil(preprocess.REDUCING_GAP * wish.short_side)
    try:
        image = decode_image(content, least_side, wish.background)
    except Unusable as problem:
        kind = TOO_LARGE if "too large" in str(problem) else UNDECODABLE
        raise Unfit(kind, str(problem).removeprefix(f"{UNDECODABLE}: ")) from None
    width, height = size or image.size
    if min(width, height) < wish.min_side:
        raise Unfit(TOO_SMALL, f"{width} x {height} pixels")
    if wish.max_aspect is not None and max(width, height) > wish.max_aspect * min(width, height):
        raise Unfit(TOO_NARROW, f"{width} x {height} pixels")
    if wish.short_side is None or min(image.size) <= wish.short_side:
        return extension, content, False
    name, extension = ENCODED[wish.format]
    return extension, _encoded(_shrunk(image, wish.short_side), name, wish.quality), True


def _look(content: bytes) -> tuple[str, Sequence[int] | None]:
    """The extension that fits an image, and its stored width and height; None for those if only decode_image can open it."""
    try:
        with Image.open(io.BytesIO(content), formats=preprocess.FORMATS) as image:
            name = image.format or ""
            return EXTENSIONS.get(name, name.lower()), image.size
    except Exception:  # decode_image says what is wrong with it, if anything is
        return "png", None


def _shrunk(image: Image.Image, short_side: int) -> Image.Image:
    scale = short_side / min(image.size)
    width, height = (max(short_side, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=preprocess.REDUCING_GAP)


def _encoded(image: Image.Image, name: str, quality: int) -> bytes:
    encoded = io.BytesIO()
    try:
        image.save(encoded, name, quality=quality)
    except (OSError, ValueError) as problem:  # every format has a longest side
        raise Unfit(UNENCODABLE, f"{image.width} x {image.height} pixels as {name}: {reason(problem)}") from None
    return encoded.getvalue()
