"""The image of a sample, whatever files it has."""

import io
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.trainer.data.shards_on_disk import jpeg
from trainer.data.shards.captions import CaptionRule, require_pair
from trainer.data.shards.images import decode_image, image_bytes
from trainer.data.shards.samples import Sample, Unusable


def encoded(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 10), (200, 100, 50)).save(stream, kind, **options)
    return stream.getvalue()


def sample(**files: bytes) -> Sample:
    return Sample("shard", "key", files)


@pytest.mark.parametrize(
    ("extension", "kind"),
    [
        *[("gif", "GIF"), ("bmp", "BMP"), ("tif", "TIFF"), ("tiff", "TIFF"), ("avif", "AVIF"), ("jp2", "JPEG2000")],
        *[("ppm", "PPM"), ("jpg", "GIF"), ("jpg", "AVIF"), ("png", "JPEG"), ("gif", "BMP")],
        *[("image", "PNG"), ("img", "JPEG"), ("bin", "TIFF"), ("1.jpg", "JPEG"), ("image.png", "PNG")],
    ],
)
def test_what_pillow_opens_is_an_image_whatever_its_extension(extension: str, kind: str) -> None:
    content = encoded(kind)
    found = image_bytes(sample(**{extension: content, "txt": b"words", "cls": b"3", "npy": b"\x93NUMPY"}))
    assert found == content
    assert decode_image(found).size == (12, 10)


def test_of_several_images_a_known_extension_decides_or_nothing() -> None:
    assert image_bytes(sample(png=encoded("PNG"), jpg=jpeg(1))) == jpeg(1)
    assert image_bytes(sample(img=encoded("PNG"), jpg=jpeg(1))) == jpeg(1)
    with pytest.raises(Unusable, match=r"several images: it contains .one .two"):
        image_bytes(sample(one=encoded("PNG"), two=encoded("PNG")))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"txt": b"a"}, "no image: it contains .txt"),
        ({}, "no image: it contains nothing"),
        ({"jpg": b"", "txt": b"a"}, "its image is empty: it contains .jpg .txt"),
        ({"mp4": b"\0\0\0\x20ftypisom", "txt": b"a"}, "no image: it contains .mp4 .txt"),
    ],
)
def test_a_sample_without_an_image_says_what_it_holds(files: dict[str, bytes], told: str) -> None:
    with pytest.raises(Unusable) as caught:
        image_bytes(sample(**files))
    assert str(caught.value) == told


def test_undecodable_images_are_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = jpeg(1, 200, 200)
    for content in (b"", b"no image", b"<svg/>", whole[: len(whole) // 2], encoded("PNG")[:-30]):
        with pytest.raises(Unusable):
            decode_image(content)
    monkeypatch.setattr("model.preprocess.MOST_PIXELS", 100)
    with pytest.raises(Unusable, match="200 x 200"):
        decode_image(whole)


def test_a_large_jpeg_is_decoded_small_but_not_too_small() -> None:
    assert decode_image(jpeg(1, 800, 400), least_side=100).size == (200, 100)
    assert decode_image(jpeg(1, 800, 400), least_side=201).size == (800, 400)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["jpg", "png", "txt", "json", "cls", "bin", "1.jpg", "2.txt"]),
        st.binary(max_size=80) | st.sampled_from([jpeg(1), encoded("GIF"), b'{"caption": "a"}', b"a dog"]),
        max_size=4,
    )
)
def test_any_sample_is_a_pair_or_unusable(files: dict[str, bytes]) -> None:
    try:
        image, captions, _ = require_pair(sample(**files), CaptionRule())
        decode_image(image)
    except Unusable as problem:
        assert "\n" not in str(problem)
        return
    assert captions
