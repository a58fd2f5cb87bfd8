"""Any kind of pixels into three channels of 8 bits."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from model.errors import UserError


def to_rgb(image: Image.Image, background: Sequence[int]) -> Image.Image:
    """The image in mode RGB, whatever its mode, over `background` (RGB, 0 to 255); returned unchanged if it already is RGB.

    Raises UserError for a mode that Pillow cannot convert.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return _from_deep(image, background)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        if converted is not None:
            return converted
    try:
        return _over(_rgba(image), background) if image.has_transparency_data else image.convert("RGB")
    except ValueError as problem:
        raise UserError(f"an image of mode {image.mode} cannot be converted to RGB: {problem}") from None


def _rgba(image: Image.Image) -> Image.Image:
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode[:-1] + "A")
    clear = image.info.get("transparency")
    if isinstance(clear, tuple | int) and image.mode in ("1", "L", "RGB"):
        # For a PNG with 16 bits per channel Pillow keeps the upper 8, but all 16 of the transparent colour.
        values = clear if isinstance(clear, tuple) else (clear,)
        if max(values) > 255:
            image = image.copy()
            eight = tuple(value >> 8 for value in values)
            image.info["transparency"] = eight if isinstance(clear, tuple) else eight[0]
    return image.convert("RGBA")


def _over(image: Image.Image, background: Sequence[int]) -> Image.Image:
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(ground, image).convert("RGB")


def _from_deep(image: Image.Image, background: Sequence[int]) -> Image.Image:
    """Grey of more than 8 bits, which Pillow's own conversion would clip to white."""
    values = np.asarray(image)
    clear = image.info.get("transparency")
    grey = Image.fromarray(_eight_bits(values, of_16_bits=image.mode.startswith("I;16"))).convert("RGB")
    if not isinstance(clear, int | float):
        return grey
    grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return _over(grey, background)


def _eight_bits(values: NDArray[np.generic], of_16_bits: bool) -> NDArray[np.uint8]:
    """Grey values as 0 to 255. 32-bit integers and floats do not define white: the smallest usual range that contains all."""
    numbers = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    most = numbers.max(initial=0.0)
    if of_16_bits:
        white = 65536.0
    elif most <= 1 and values.dtype.kind == "f":
        white = 1.0
    else:
        white = next((usual for usual in (256.0, 65536.0, 2.0**31, 2.0**32) if most < usual), float(most))
    scaled = numbers * 255 if white == 1 else numbers * (256 / white)
    return scaled.clip(0, 255).astype(np.uint8)
