"""Image files of every kind: upright, over a background, or one line that says what they are."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from model.errors import UserError
from model.preprocess import FORMATS, PNG_SIGNATURE, UPRIGHT, WHITE, centre_crop, decode_image, is_image, kind_of

GREEN = (10, 200, 30)
ROOM = 12  # how far a lossy format may be off


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixel(content: bytes, x: int = 0, y: int = 0, background: tuple[int, int, int] = WHITE) -> tuple[int, ...]:
    image = decode_image(content, background=background)
    assert image.mode == "RGB"
    found = image.getpixel((x, y))
    assert isinstance(found, tuple)
    return tuple(int(value) for value in found)


def near(found: tuple[int, ...], expected: tuple[int, ...], room: int = ROOM) -> bool:
    return all(abs(a - b) <= room for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_an_image_whatever_its_name(kind: str) -> None:
    content = encoded(Image.new("RGB", (16, 12), (200, 100, 50)), kind)
    assert is_image(content)
    assert near(pixel(content, 3, 3), (200, 100, 50))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "CMYK", "YCbCr"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP"])
def test_every_mode_becomes_rgb(mode: str, kind: str) -> None:
    grey = Image.fromarray(np.full((7, 9), 128 << 8, np.uint16)) if mode == "I;16" else Image.new("L", (9, 7), 128).convert(mode)
    if mode == "I;16" and kind not in ("PNG", "TIFF"):
        return  # Pillow writes no such file, or a clipped one
    try:
        content = encoded(grey, kind)
    except (OSError, ValueError):
        return
    image = decode_image(content)
    assert (image.mode, image.size) == ("RGB", (9, 7))
    if mode != "1":
        assert np.abs(np.asarray(image).astype(int) - 128).max() <= 3


@pytest.mark.parametrize("value", [0, 1, 255, 256, 32768, 65535])
def test_16_bits_are_scaled_not_clipped(value: int) -> None:
    pixels = np.full((4, 4), value, np.uint16)
    for content in (encoded(Image.fromarray(pixels), "PNG"), encoded(Image.fromarray(pixels), "TIFF")):
        assert pixel(content) == (value >> 8,) * 3
    assert near(pixel(b"P5 1 1 65535\n" + struct.pack(">H", value)), (value >> 8,) * 3, 0 if value > 255 else 255)


def test_floats_and_integers_of_32_bits_in_their_usual_ranges() -> None:
    for values, expected in (([0.0, 0.5, 1.0], [0, 127, 255]), ([0.0, 128.0, 255.0], [0, 128, 255])):
        content = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
        assert [pixel(content, x)[0] for x in range(3)] == expected
    for whole, expected in (([0, 128, 255], [0, 128, 255]), ([0, 32768, 65535], [0, 128, 255])):
        content = encoded(Image.fromarray(np.array([whole], np.int32)), "TIFF")
        assert [pixel(content, x)[0] for x in range(3)] == expected
    strange = Image.fromarray(np.array([[np.nan, np.inf, -1.0, 1.0]], np.float32))
    assert [pixel(encoded(strange, "TIFF"), x)[0] for x in range(4)] == [0, 0, 0, 255]


def test_a_photograph_for_print_is_not_inverted() -> None:
    red = Image.new("RGB", (16, 16), (220, 20, 20))
    assert near(pixel(encoded(red.convert("CMYK"), "JPEG", quality=95), 8, 8), (220, 20, 20))
    assert near(pixel(encoded(red.convert("CMYK"), "TIFF"), 8, 8), (220, 20, 20))


def test_lab_is_converted() -> None:
    srgb = Image.new("RGB", (4, 4), (200, 100, 50))
    lab = ImageCms.profileToProfile(srgb, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
    assert lab is not None
    assert near(pixel(encoded(lab, "TIFF")), (200, 100, 50))


def logo() -> Image.Image:
    """The left half is black, the right half transparent, and black under it."""
    image = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 4))
    return image


def two_colours() -> Image.Image:
    image = Image.new("P", (8, 4), 1)
    image.putpalette([0, 0, 0, 30, 30, 30])
    return image


def png_of_one_pixel(raw: bytes, bits: int, colour: int, clear: bytes | None = None) -> bytes:
    """A PNG of 1 x 1; `clear`: which colour is transparent (tRNS). Pillow writes none of 16 bits with an alpha."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 1, 1, bits, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header)] + ([] if clear is None else [chunk(b"tRNS", clear)])
    return b"".join([b"\x89PNG\r\n\x1a\n", *chunks, chunk(b"IDAT", zlib.compress(b"\0" + raw)), chunk(b"IEND", b"")])


TRANSPARENT = {
    "RGBA png": encoded(logo(), "PNG"),
    "LA png": encoded(logo().convert("LA"), "PNG"),
    "palette png": encoded(Image.new("P", (8, 4), 0), "PNG", transparency=0),
    "palette png with alphas": encoded(two_colours(), "PNG", transparency=b"\xff\x00"),
    "grey png with a clear colour": encoded(Image.new("L", (8, 4), 7), "PNG", transparency=7),
    "RGB png with a clear colour": encoded(Image.new("RGB", (8, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
    "grey png of 16 bits": png_of_one_pixel(b"\x12\x34", 16, 0, b"\x12\x34"),
    "RGB png of 16 bits": png_of_one_pixel(b"\x12\x34" * 3, 16, 2, b"\x12\x34" * 3),
    "RGBA png of 16 bits": png_of_one_pixel(b"\x12\x34" * 3 + b"\0\0", 16, 6),
    "LA png of 16 bits": png_of_one_pixel(b"\x12\x34\0\0", 16, 4),
    "gif": encoded(Image.new("P", (8, 4), 3), "GIF", transparency=3),
    "webp": encoded(logo(), "WEBP", lossless=True),
    "avif": encoded(logo(), "AVIF", quality=100),
    "tiff": encoded(logo(), "TIFF"),
    "LA tiff": encoded(logo().convert("LA"), "TIFF"),
    "jpeg 2000": encoded(logo(), "JPEG2000"),
    "ico": encoded(logo().resize((16, 16), Image.Resampling.NEAREST), "ICO"),
    "qoi": encoded(logo(), "QOI"),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_the_background_is_seen_through_what_is_transparent(name: str) -> None:
    content = TRANSPARENT[name]
    right = decode_image(content).width - 1
    assert near(pixel(content, right), WHITE)
    assert near(pixel(content, right, background=GREEN), GREEN)


def test_what_is_half_transparent_is_mixed_and_what_is_opaque_stays() -> None:
    half = Image.new("RGBA", (4, 4), (200, 100, 0, 128))
    assert near(pixel(encoded(half, "PNG")), (228, 177, 127), 2)
    assert pixel(encoded(logo(), "PNG")) == (0, 0, 0)
    assert pixel(encoded(Image.new("RGBA", (4, 4), (200, 100, 0, 255)), "PNG")) == (200, 100, 0)


def marked() -> Image.Image:
    """32 x 16, its upper left quarter red."""
    image = Image.new("RGB", (32, 16), (20, 20, 200))
    image.paste((230, 20, 20), (0, 0, 16, 8))
    return image


def turned_away(orientation: int) -> Image.Image:
    """`marked` as a camera stores it that says how to turn it upright."""
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    turn = back.get(orientation, UPRIGHT.get(orientation))
    return marked() if turn is None else marked().transpose(turn)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_an_image_is_upright_in_every_format(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95}
    content = encoded(turned_away(orientation), kind, exif=exif, **options)
    image = decode_image(content)
    assert image.size == (32, 16)
    assert near(pixel(content, 4, 2), (230, 20, 20), 40)
    assert near(pixel(content, 28, 12), (20, 20, 200), 40)


@pytest.mark.parametrize("orientation", [1, 6])
def test_an_upright_jpeg_may_still_come_smaller(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    large = turned_away(orientation).resize((800, 400) if orientation == 1 else (400, 800))
    image = decode_image(encoded(large, "JPEG", exif=exif), least_side=100)
    assert image.size == (200, 100)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_orientation_that_is_none_is_ignored(value: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    assert decode_image(encoded(marked(), "JPEG", exif=exif)).size == (32, 16)


def test_damaged_exif_is_no_damaged_image() -> None:
    content = encoded(marked(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense")
    assert decode_image(content).size == (32, 16)


@pytest.mark.parametrize("aside", ["zTXt", "iTXt", "tEXt", "iCCP"])
def test_a_large_text_or_colour_profile_is_no_damage(aside: str) -> None:
    huge = "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1)
    info = PngImagePlugin.PngInfo()
    if aside == "iCCP":
        content = encoded(marked(), "PNG", icc_profile=huge.encode())
    elif aside == "iTXt":
        info.add_itxt("comment", huge, zip=True)
        content = encoded(marked(), "PNG", pnginfo=info)
    else:
        info.add_text("comment", huge, zip=aside == "zTXt")
        content = encoded(marked(), "PNG", pnginfo=info)
    assert np.array_equal(np.asarray(decode_image(content)), np.asarray(marked()))


def test_of_several_frames_the_first_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        assert near(pixel(encoded(frames[0], kind, save_all=True, append_images=frames[1:])), (250, 0, 0)), kind


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "an empty file"),
        (b"\0" * 100, "a file of zeros"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', "an SVG drawing"),
        (b'<?xml version="1.0"?><svg></svg>', "XML, perhaps an SVG drawing"),
        (b"\n<!DOCTYPE html><html><body>404", "an HTML page"),
        (b"\xef\xbb\xbf<HTML>", "an HTML page"),
        (b'{"error": "not found"}', "JSON"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript"),
        (b"\0\0\0\x20ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x20ftypisom\0\0\0\0", "a video ('isom')"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"no image", "unknown data that begins with b'no image'"),
        (b"<!-- 404 -->\n<html>", "HTML or XML"),
        (b"\xff\xd8\xff\xe0", "a damaged JPEG"),
        (PNG_SIGNATURE + b"\0" * 40, "a damaged PNG"),
        (b"GIF89a\5\0\5\0\0\0\0;", "a damaged GIF"),
        (b"RIFF\0\0\0\0WEBP", "a damaged WebP"),
        (b"\0\0\0\x1cftypavif", "a damaged AVIF"),
        (b"II*\0\xff\xff\xff\xff", "a damaged TIFF"),
        (b"\0\0\0\x0cJXL \r\n", "JPEG XL"),
    ],
)
def test_what_is_no_image_is_called_by_its_name(content: bytes, told: str) -> None:
    assert kind_of(content).startswith(told)
    assert not is_image(content)
    with pytest.raises(UserError) as caught:
        decode_image(content)
    assert told in str(caught.value)
    assert "BytesIO" not in str(caught.value)


def test_no_program_is_run_for_postscript(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", run)
    content = encoded(marked(), "EPS")
    with pytest.raises(UserError, match="it is PostScript"):
        decode_image(content)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in ("ICO", "QOI")])
def test_a_cut_file_cannot_be_decoded(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    with pytest.raises(UserError, match="cannot be decoded") as caught:
        decode_image(whole[: len(whole) // 3])
    assert "BytesIO" not in str(caught.value)


def test_the_size_limit_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(marked(), "PNG")
    monkeypatch.setattr("model.preprocess.MOST_PIXELS", 100)
    with pytest.raises(UserError, match=r"too large \(32 x 16 pixels\): the limit is 100 pixels.*reduce its size"):
        decode_image(content)
    monkeypatch.setattr("model.preprocess.MOST_PIXELS", 10**9)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=r"too large \(512 pixels\): the limit is 1000000000 pixels"):  # not Pillow's
        decode_image(content)


SOUND = [encoded(marked(), kind) for kind in FORMATS] + list(TRANSPARENT.values())


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.data())
def test_any_bytes_are_an_image_or_unusable(data: st.DataObject) -> None:
    content = data.draw(st.binary(max_size=200) | st.sampled_from(SOUND))
    if content in SOUND:
        spoiled = bytearray(content)
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
            spoiled[place] = data.draw(st.integers(0, 255))
        content = bytes(spoiled[: data.draw(st.integers(1, len(spoiled)))])
    try:
        image = decode_image(content, data.draw(st.sampled_from([0, 8])))
    except UserError as problem:
        str(problem).encode()
        return
    assert image.mode == "RGB"
    assert centre_crop(image, 4).shape == (3, 4, 4)
