"""Image files into RGB images, whatever lies in them."""

import io

import numpy as np
from PIL import Image

from trainer.data.samples import Sample, Unusable

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MOST_PIXELS = 64 * 1024 * 1024  # larger ones are taken for decompression bombs: 192 MiB decoded


def image_bytes(sample: Sample) -> bytes:
    """The encoded image of a sample. Raises Unusable when it has none."""
    for extension in EXTENSIONS:
        if sample.files.get(extension):
            return sample.files[extension]
    raise Unusable("no image")


def decode_image(content: bytes, least_side: int = 0) -> Image.Image:
    """A JPEG, PNG or WebP file as an RGB image, loaded.

    A JPEG may come at 1/2, 1/4 or 1/8 of its size, but with no side under `least_side` pixels (0: at full size), which
    takes a fraction of the time. Raises Unusable for anything that cannot be decoded whole.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP"))
        if image.width * image.height > MOST_PIXELS:
            raise Unusable(f"image of {image.width} x {image.height} pixels")
        if least_side:
            image.draft(None, (least_side, least_side))
        image.load()
        return _to_rgb(image)
    except Unusable:
        raise
    # Decoders meet foreign bytes here and raise nearly anything: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as problem:
        raise Unusable(f"image cannot be decoded: {problem}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # 16 bits a pixel: convert() would clip everything above 255 to white.
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
