"""The image of a sample, whatever files it has."""

import io
import warnings
from collections.abc import Sequence

from PIL import Image

from model import preprocess
from trainer.data.shards.names import DOTS_REMEDY, IMAGES, WORDS, file_named
from trainer.data.shards.samples import Sample, Unusable
from trainer.errors import UserError

# Pillow warns of damaged EXIF and the like, which users cannot do anything about; what matters is an error.
warnings.filterwarnings("ignore", module=r"PIL\.")


def image_bytes(sample: Sample) -> bytes:
    """The encoded image of a sample: by its extension, else the only file that begins as an image does.

    Raises Unusable when it has none, or when several could be it.
    """
    for extension in IMAGES:
        if content := file_named(sample.files, extension):
            return content
    others = [content for name, content in sample.files.items() if name.rpartition(".")[2] not in (*IMAGES, *WORDS)]
    images = [content for content in others if preprocess.is_image(content)]
    if len(images) == 1:
        return images[0]
    held = " ".join(f".{name}" for name in sorted(sample.files)[:10]) or "nothing"
    if sum("." in name and name.rpartition(".")[2] in IMAGES for name in sample.files) > 1:
        raise Unusable(f"no image: it contains {held}; {DOTS_REMEDY}")
    if any(name.rpartition(".")[2] in IMAGES for name in sample.files):
        raise Unusable(f"its image is empty: it contains {held}")
    raise Unusable(f"{'several images' if images else 'no image'}: it contains {held}")


def shorter_side(content: bytes) -> int | None:
    """Pixels of an image's shorter side as its header says, None if it cannot be read: decoding will say why."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return min(image.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def decode_image(content: bytes, least_side: int = 0, background: Sequence[int] = preprocess.WHITE) -> Image.Image:
    """model.preprocess.decode_image of a sample's file. Raises Unusable for anything that cannot be decoded completely."""
    try:
        return preprocess.decode_image(content, least_side, background)
    except UserError as problem:
        raise Unusable(str(problem)) from None
