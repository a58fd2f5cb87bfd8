"""Images into what the model sees: decoded and cropped on the CPU, normalised on the device. Evaluation and users share it."""

import io
import struct
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from model.errors import UserError
from model.pixels import to_rgb

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "QOI", "DIB")
"""Recognised by their first bytes; decoded here. Of Pillow's others EPS and PDF run programs and TGA has no signature."""
MOST_PIXELS = 64 * 1024 * 1024  # larger images are treated as decompression bombs: 192 MiB decoded
REDUCING_GAP = 2.0  # a large box is first shrunk by a whole factor to no less than twice the size: faster, looks the same
WHITE = (255, 255, 255)

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_ASIDES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # say nothing about the pixels as we read them

# How to turn the stored pixels upright, by the Orientation of EXIF (CIPA DC-008, 4.6.4).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What is often given instead of an image: how it begins, in lower case, and its name.
IMPOSTORS = (
    (b"<svg", "an SVG drawing"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "XML, perhaps an SVG drawing"),
    (b"{", "JSON"),
    (b"[", "JSON"),
    (b"%!ps", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%pdf", "a PDF document"),
    (b"\x1f\x8b", "gzip data"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"version https://git-lfs", "a pointer of Git LFS"),
    (b"<!--", "HTML or XML"),
    (b"8bps", "a Photoshop document"),
    (b"\xff\x0a", "JPEG XL, which Pillow does not decode"),
    (b"\0\0\0\x0cjxl ", "JPEG XL, which Pillow does not decode"),
    (b"\xff\xd8\xff", "a damaged JPEG"),
    (b"\x89png", "a damaged PNG"),
    (b"gif8", "a damaged GIF, or one without a frame"),
    (b"ii*\0", "a damaged TIFF"),
    (b"mm\0*", "a damaged TIFF"),
)


def decode_image(content: bytes, least_side: int = 0, background: Sequence[int] = WHITE) -> Image.Image:
    """An image file of FORMATS as an RGB image, loaded and upright (EXIF); of several frames, the first.

    background: RGB from 0 to 255, shown through transparent parts. A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, but with
    no side under `least_side` pixels (0: at full size), which takes a fraction of the time. Raises UserError for anything
    that cannot be decoded completely.
    """
    try:
        return upright_rgb(_opened(content, least_side), background)
    except UserError:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError) as problem:
        if isinstance(problem, Image.DecompressionBombError):
            raise UserError(_too_large(_in_brackets(str(problem)))) from None
        raise UserError(f"image cannot be decoded: it is {kind_of(content)}") from None
    # Decoders see arbitrary bytes here and can raise nearly anything: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as problem:
        raise UserError(f"image cannot be decoded: {problem or type(problem).__name__}") from None


def is_image(content: bytes) -> bool:
    """Whether the content begins as an image of FORMATS does."""
    try:
        Image.open(io.BytesIO(content), formats=FORMATS).close()
    except Image.DecompressionBombError:
        return True
    except Exception:  # see decode_image
        return False
    return True


def kind_of(content: bytes) -> str:
    """In words, what a file is if it is not an image."""
    start = content[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if content[4:8] == b"ftyp":
        brand = content[8:12].decode("ascii", "replace")
        if brand.startswith("avi"):
            return "a damaged AVIF"
        return "HEIC, which Pillow does not decode" if brand.startswith(("hei", "hev", "mif")) else f"a video ({brand!r})"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "a damaged WebP"
    if not content.strip(b"\0"):
        return "a file of zeros" if content else "an empty file"
    found = [name for mark, name in IMPOSTORS if start.startswith(mark)]
    return found[0] if found else f"unknown data that begins with {content[:8]!r}"


def upright_rgb(image: Image.Image, background: Sequence[int] = WHITE) -> Image.Image:
    """An image that Pillow has opened with three channels of 8 bits, turned upright where its EXIF says how."""
    image.load()
    turn = UPRIGHT.get(_orientation(image))
    rgb = to_rgb(image, background)
    return rgb if turn is None else rgb.transpose(turn)


def _opened(content: bytes, least_side: int) -> Image.Image:
    """The image with its pixels read, as they are stored."""
    try:
        return _loaded(Image.open(io.BytesIO(content), formats=FORMATS), least_side)
    except UserError:
        raise
    except Exception:
        # Pillow refuses a whole PNG because of a text or a colour profile of more than a megabyte.
        if not content.startswith(PNG_SIGNATURE):
            raise
        return _loaded(Image.open(io.BytesIO(b"".join(_pixel_chunks(content))), formats=FORMATS), least_side)


def _loaded(image: Image.Image, least_side: int) -> Image.Image:
    if not image.width or not image.height:
        raise UserError(f"image of {image.width} x {image.height} pixels")
    if image.width * image.height > MOST_PIXELS:
        raise UserError(_too_large(f"{image.width} x {image.height} pixels"))
    if least_side:
        image.draft(None, (least_side, least_side))
    image.load()
    return image


def _in_brackets(told: str) -> str:
    """The size in Pillow's own words, which go on with Pillow's own limit."""
    return told.partition("(")[2].partition(")")[0] or told


def _too_large(size: str) -> str:
    return f"image too large ({size}): the limit is {MOST_PIXELS} pixels, against decompression bombs; reduce its size"


def _pixel_chunks(content: bytes) -> Iterator[bytes]:
    """A PNG file in pieces, without the chunks that Pillow may refuse and we do not need (PNG specification, 5.3)."""
    yield PNG_SIGNATURE
    place = len(PNG_SIGNATURE)
    while place + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, place)
        if name not in PNG_ASIDES:
            yield content[place : place + 12 + length]
        place += 12 + length


def _orientation(image: Image.Image) -> int:
    """1, upright, when nothing can be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF is arbitrary bytes too, and an image with damaged EXIF is still usable
        return 1


def centre_crop(image: Image.Image, size: int) -> Tensor:
    """The central square of an RGB image, its shorter side scaled to `size`, as uint8 `[3, size, size]`."""
    return resized(image, size, central_box(image.width, image.height, 1.0, 1.0))


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """uint8 `[…, 3, H, W]` as `(value / 255 - mean) / std` in `dtype`, on the device the images are on."""
    mean_c11 = torch.tensor(list(mean), dtype=torch.float32, device=images.device).view(3, 1, 1)
    std_c11 = torch.tensor(list(std), dtype=torch.float32, device=images.device).view(3, 1, 1)
    return torch.addcmul(-mean_c11 / std_c11, images.float(), 1 / (255 * std_c11)).to(dtype)


def central_box(width: int, height: int, lowest_ratio: float, highest_ratio: float) -> Box:
    """The largest box in the middle whose ratio of width to height is between the two ratios."""
    box_width, box_height = min(width, height * highest_ratio), min(height, width / lowest_ratio)
    left, upper = (width - box_width) / 2, (height - box_height) / 2
    return left, upper, left + box_width, upper + box_height


def resized(image: Image.Image, size: int, box: Box) -> Tensor:
    """The part of an RGB image in the box as uint8 `[3, size, size]`."""
    scaled = image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=REDUCING_GAP)
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).contiguous()
