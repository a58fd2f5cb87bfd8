"""Every kind of image that a user of the model may have."""

from collections.abc import Sequence
from os import PathLike
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from torch import Tensor

from model.errors import UserError, reason
from model.paths import user_path
from model.preprocess import WHITE, decode_image, upright_rgb

Picture = Image.Image | str | PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | NDArray[Any] | Tensor
"""An image: opened by Pillow, the path of a file, a file's content, a file open for reading bytes, or pixels.

Pixels are an array `[H, W]` or `[H, W, C]` as numpy's users have it, or a tensor `[H, W]` or `[C, H, W]` as torch's do; C is
1 (grey), 3 (RGB) or 4 (with alpha). Bytes and other integers go from 0 to 255, floats from 0 to 1, booleans are black and white.
"""


def read_picture(image: Picture, least_side: int = 0, background: Sequence[int] = WHITE) -> Image.Image:
    """An RGB image, read as evaluation does it: see model.preprocess.decode_image.

    Raises UserError for a file that is not an image, TypeError for any other object, and ValueError for pixels with another
    shape or range.
    """
    if isinstance(image, (str, PathLike)):
        try:
            return decode_image(user_path(image).read_bytes(), least_side, background)
        except (OSError, ValueError) as problem:  # a path with a NUL is a ValueError
            raise UserError(f"image {image}: {reason(problem)}") from problem
        except UserError as problem:
            raise UserError(f"image {image}: {problem}") from problem
    if isinstance(image, (bytes, bytearray, memoryview)):
        return decode_image(bytes(image), least_side, background)
    if isinstance(image, Image.Image):
        return _from_pillow(image, least_side, background)
    if isinstance(image, Tensor) and not image.is_complex():
        pixels = image.detach().cpu()
        return _from_array((pixels.movedim(0, -1) if pixels.ndim == 3 else pixels).float().numpy(), str(image.dtype), background)
    if isinstance(image, np.ndarray):
        return _from_array(image, str(image.dtype), background)
    if hasattr(image, "read"):
        content = image.read()
        if not isinstance(content, bytes):
            raise TypeError("an image file must be opened in binary mode: open(path, 'rb')")
        return decode_image(content, least_side, background)
    raise TypeError(
        f"{kind_of_object(image)} is not an image: give a path, file content, an open file, a Pillow image, an array or a tensor"
    )


def kind_of_object(value: object) -> str:
    """`None`, `a float (nan)`, `a list`: for the error that says what was given."""
    if value is None:
        return "None"
    if isinstance(value, (int, float)):
        return f"a number ({value})"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _from_pillow(image: Image.Image, least_side: int, background: Sequence[int]) -> Image.Image:
    """An image that is open but not yet read is read again like a file: at a reduced size, and only in our formats."""
    if isinstance(image, ImageFile.ImageFile) and image.tile and image.fp and image.tell() == 0:
        return decode_image(_content(image.fp), least_side, background)
    try:
        return upright_rgb(image, background)
    except UserError:
        raise
    except Exception as problem:  # the file may be cut off
        raise UserError(f"image cannot be decoded: {problem or type(problem).__name__}") from problem


def _content(file: IO[bytes]) -> bytes:
    """The whole content of an open file, whose position is kept."""
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    return content


def _from_array(pixels: NDArray[Any], dtype: str, background: Sequence[int]) -> Image.Image:
    """Pixels `[H, W]` or `[H, W, C]`; dtype: that of what was given, for the error."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))) or 0 in pixels.shape:
        raise ValueError(
            f"pixels of height, width, channels {list(pixels.shape)} are not an image: use an array [H, W, 3] or tensor [3, H, W]"
        )
    if pixels.dtype.kind not in "buif":
        raise TypeError(f"pixels of {dtype} are not an image: give bytes from 0 to 255, or floats from 0 to 1")
    white = 1 if "float" in dtype or "bool" in dtype else 255
    least, most = float(pixels.min()), float(pixels.max())
    if not (least >= 0 and most <= white):  # NaN is neither
        raise ValueError(f"pixels of {dtype} go from {least:g} to {most:g}; they must be between 0 and {white}")
    eight = (pixels.astype(np.float32) * (255 / white)).round().astype(np.uint8)
    return upright_rgb(Image.fromarray(eight), background)
