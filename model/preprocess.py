"""Images into what the model sees: decoded and cropped on the CPU, normalised on the device. Evaluation and users share it."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.errors import UserError

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels

MOST_PIXELS = 64 * 1024 * 1024  # larger images are taken for decompression bombs: 192 MiB decoded
REDUCING_GAP = 2.0  # a large box is first shrunk by a whole factor to no less than twice the size: faster, looks the same


def decode_image(content: bytes, least_side: int = 0) -> Image.Image:
    """A JPEG, PNG or WebP file as an RGB image, loaded.

    A JPEG may come at 1/2, 1/4 or 1/8 of its size, but with no side under `least_side` pixels (0: at full size), which
    takes a fraction of the time. Raises UserError for anything that cannot be decoded whole.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP"))
        if image.width * image.height > MOST_PIXELS:
            raise UserError(f"image of {image.width} x {image.height} pixels")
        if least_side:
            image.draft(None, (least_side, least_side))
        image.load()
        return to_rgb(image)
    except UserError:
        raise
    # Decoders meet foreign bytes here and raise nearly anything: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as problem:
        raise UserError(f"image cannot be decoded: {problem}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """The image with three channels of 8 bits, whatever mode it has; itself when it is so already."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # 16 bits a pixel: convert() would clip everything above 255 to white.
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def centre_crop(image: Image.Image, size: int) -> Tensor:
    """The central square of an RGB image, its shorter side scaled to `size`, as uint8 `[3, size, size]`."""
    return resized(image, size, central_box(image.width, image.height, 1.0, 1.0))


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """uint8 `[…, 3, H, W]` as `(value / 255 - mean) / std` in `dtype`, on the device the images are on."""
    mean_c11 = torch.tensor(list(mean), dtype=torch.float32, device=images.device).view(3, 1, 1)
    std_c11 = torch.tensor(list(std), dtype=torch.float32, device=images.device).view(3, 1, 1)
    return torch.addcmul(-mean_c11 / std_c11, images.float(), 1 / (255 * std_c11)).to(dtype)


def central_box(width: int, height: int, lowest_ratio: float, highest_ratio: float) -> Box:
    """The largest box in the middle whose width to height lies between the two ratios."""
    box_width, box_height = min(width, height * highest_ratio), min(height, width / lowest_ratio)
    left, upper = (width - box_width) / 2, (height - box_height) / 2
    return left, upper, left + box_width, upper + box_height


def resized(image: Image.Image, size: int, box: Box) -> Tensor:
    """The part of an RGB image in the box as uint8 `[3, size, size]`."""
    scaled = image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=REDUCING_GAP)
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).contiguous()
