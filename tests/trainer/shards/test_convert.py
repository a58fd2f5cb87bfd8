"""Images as they go into a shard: upright, of three channels, no larger than asked for, and unchanged where possible."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.preprocess import decode_image
from trainer.data.shards.captions import CaptionRule
from trainer.data.shards.samples import Sample
from trainer.shards.convert import Wish, convert, fit_image
from trainer.shards.unfit import Unfit

WISH = Wish(short_side=32, format="png")


def encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, name, **options)
    return content.getvalue()


def ramp(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Brighter to the right, and red to the bottom."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([np.maximum(x, y), x, x], -1).astype(np.uint8)).convert(mode)


def upside_down(content_size: tuple[int, int]) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(ramp(*content_size), "JPEG", exif=exif, quality=95)


@pytest.mark.parametrize(
    "content",
    [
        encoded(ramp(100, 64), "JPEG", quality=95),
        encoded(ramp(2000, 1000), "JPEG", quality=95),
        upside_down((100, 64)),
        encoded(ramp(100, 64, "CMYK"), "JPEG", quality=95),
        encoded(ramp(100, 64, "L"), "PNG"),
        encoded(ramp(100, 64, "P"), "PNG", transparency=0),
        encoded(Image.fromarray((np.arange(6400).reshape(64, 100) * 10).astype(np.uint16)), "PNG"),
        encoded(ramp(100, 64, "RGBA"), "WEBP", lossless=True),
        encoded(ramp(100, 64, "P"), "GIF", save_all=True, append_images=[ramp(100, 64, "P").rotate(180)]),
        encoded(ramp(100, 64), "TIFF"),
    ],
    ids=["jpeg", "large", "exif", "cmyk", "grey", "palette", "16 bit", "webp", "gif", "tiff"],
)
def test_a_smaller_image_looks_as_the_loader_would_see_the_whole(content: bytes):
    extension, small, resized = fit_image(content, WISH)
    whole = decode_image(content)
    assert resized and extension == "png"
    image = decode_image(small)
    assert min(image.size) == 32 and abs(image.width / image.height - whole.width / whole.height) < 0.04
    expected = np.asarray(whole.resize(image.size, Image.Resampling.BICUBIC), float)
    assert np.abs(np.asarray(image, float) - expected).mean() < 4


@pytest.mark.parametrize(
    ("name", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("TIFF", "tif")]
)
@pytest.mark.parametrize("wish", [WISH, Wish(short_side=None)], ids=["small enough", "never"])
def test_an_image_that_need_not_change_keeps_its_bytes(name: str, extension: str, wish: Wish):
    content = encoded(ramp(32, 40), name)
    assert fit_image(content, wish) == (extension, content, False)


@pytest.mark.parametrize(
    ("name", "extension", "kind"), [("jpeg", "jpg", "JPEG"), ("webp", "webp", "WEBP"), ("png", "png", "PNG")]
)
def test_the_format_can_be_chosen(name: str, extension: str, kind: str):
    given, content, _ = fit_image(encoded(ramp(80, 64), "BMP"), Wish(short_side=32, format=name))
    assert given == extension and Image.open(io.BytesIO(content)).format == kind


def test_a_lower_quality_takes_less_space():
    content = encoded(ramp(200, 100), "PNG")
    low, high = (len(fit_image(content, Wish(short_side=64, quality=quality))[1]) for quality in (30, 95))
    assert low < high


def test_the_background_shows_through():
    content = encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "PNG")
    _, small, _ = fit_image(content, Wish(short_side=32, format="png", background=(10, 20, 30)))
    assert decode_image(small).getpixel((5, 5)) == (10, 20, 30)


@pytest.mark.parametrize(
    ("content", "wish", "kind"),
    [
        (b"<html>", WISH, "image cannot be decoded"),
        (encoded(ramp(100, 64), "JPEG")[:-200], WISH, "image cannot be decoded"),
        (encoded(ramp(100, 64), "JPEG")[:-200], Wish(short_side=None), "image cannot be decoded"),
        (encoded(Image.new("1", (9000, 9000)), "PNG"), WISH, "image is too large"),
        (encoded(Image.new("1", (15000, 15000)), "PNG"), WISH, "image is too large"),
        (encoded(ramp(100, 30), "JPEG"), Wish(min_side=31), "image is smaller than min_side"),
        (encoded(ramp(100, 30), "JPEG"), Wish(max_aspect=3), "image is longer than max_aspect"),
    ],
    ids=["html", "cut off", "cut off, as it is", "large", "bomb", "small", "narrow"],
)
def test_what_cannot_be_used_is_of_a_kind(content: bytes, wish: Wish, kind: str):
    with pytest.raises(Unfit) as problem:
        fit_image(content, wish)
    assert problem.value.kind == kind


def test_an_array_beside_a_caption_need_not_be_a_label():
    files = {"jpg": encoded(ramp(9, 9), "JPEG"), "txt": b"one", "npy": b"an embedding"}
    assert convert(Sample("x.tar", "1", files), CaptionRule(), WISH).files == files


def test_an_image_too_long_for_its_format_is_not_fatal():
    content = encoded(Image.new("L", (40_000, 40)), "PNG")
    with pytest.raises(Unfit) as problem:
        fit_image(content, Wish(short_side=32, format="webp"))
    assert problem.value.kind == "image cannot be encoded"


def test_limits_are_about_the_whole_image():
    content = encoded(ramp(1200, 800), "JPEG")  # decoded at a fraction of its size
    assert fit_image(content, Wish(short_side=32, min_side=800, max_aspect=1.5))[2]


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"txt": b"one"}, "no image"),
        ({"jpg": b"", "txt": b"one"}, "no image"),
        ({"jpg": encoded(ramp(9, 9), "JPEG")}, "no caption"),
        ({"jpg": encoded(ramp(9, 9), "JPEG"), "txt": b" "}, "no caption"),
        ({"jpg": encoded(ramp(9, 9), "JPEG"), "txt": b"caf\xe9"}, "no caption"),
        ({"jpg": encoded(ramp(9, 9), "JPEG"), "cls": b"cat"}, "label cannot be read"),
    ],
)
def test_a_sample_needs_an_image_and_a_caption_or_a_label(files: dict[str, bytes], kind: str):
    with pytest.raises(Unfit) as problem:
        convert(Sample("x.tar", "1", files), CaptionRule(), WISH)
    assert problem.value.kind == kind
