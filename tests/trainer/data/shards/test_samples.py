"""Shards as they are found: whole, cut off, damaged, without captions, with strange images."""

import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainer.data.shards_on_disk import jpeg, pair, write_shard, write_shards
from trainer.data.shards.captions import captions_of, check_captions, label_of, training_captions
from trainer.data.shards.images import decode_image, image_bytes
from trainer.data.shards.samples import Sample, Unusable, read_samples
from trainer.errors import UserError


def member_offset(shard: str, name: str) -> int:
    return Path(shard).read_bytes().index(name.encode())


def test_samples_come_in_order_with_their_files(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, 1, 3)
    samples = list(read_samples(shard))
    assert [sample.key for sample in samples] == ["000000", "000001", "000002"]
    assert samples[1].files["jpg"] == jpeg(1)
    assert samples[1].id == f"{shard}/000001"
    assert [sample.key for sample in read_samples(f"pipe:cat {shard}")] == ["000000", "000001", "000002"]


@pytest.mark.parametrize(
    ("member", "behind_header", "whole"),
    [
        ("000003.jpg", 600, 3),  # within an image
        ("000003.txt", 100, 3),  # within a header; the image of this sample is lost with it
        ("000003.jpg", -1, 3),  # right between two samples
    ],
)
def test_a_truncated_shard_gives_what_is_whole_and_one_bad_sample(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, member: str, behind_header: int, whole: int
) -> None:
    (shard,) = write_shards(tmp_path, 1, 6)
    kept = Path(shard).read_bytes()[: member_offset(shard, member) + behind_header]
    Path(shard).write_bytes(kept)
    with caplog.at_level(logging.WARNING):
        samples = [*read_samples(shard), *read_samples(shard)]
    good, broken = samples[:whole], samples[whole]
    assert len(samples) == 2 * (whole + 1)
    assert [sample.key for sample in good] == [f"{index:06}" for index in range(whole)]
    assert all(set(sample.files) == {"jpg", "txt"} for sample in good)
    assert broken.broken
    assert caplog.text.count("the shard breaks off") == 1
    assert shard in caplog.text


def test_a_damaged_header_is_a_break_not_the_end(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, 1, 6)
    content = bytearray(Path(shard).read_bytes())
    place = member_offset(shard, "000002.jpg")
    content[place : place + 512] = b"x" * 512
    Path(shard).write_bytes(content)
    samples = list(read_samples(shard))
    assert [sample.key for sample in samples if not sample.broken] == ["000000", "000001"]
    assert samples[-1].broken


@pytest.mark.parametrize("shard", ["/nowhere/missing.tar", "pipe:exit 3", "strange://x/y.tar"])
def test_what_cannot_be_opened_is_one_bad_sample(shard: str) -> None:
    (sample,) = read_samples(shard)
    assert sample.broken
    assert sample.shard == shard


def test_a_command_that_fails_at_its_end_is_a_break(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, 1, 2)
    samples = list(read_samples(f"pipe:cat {shard}; exit 7"))
    assert [bool(sample.broken) for sample in samples] == [False, False, True]


def sample(**files: bytes) -> Sample:
    return Sample("shard", "key", files)


def test_captions() -> None:
    as_json = json.dumps({"caption": " one ", "all": ["two", "", "three"], "number": 4}).encode()
    assert captions_of(sample(txt=b" a  dog \n"), None) == ["a dog"]
    assert captions_of(sample(txt="Hündin\n\ncat\n".encode()), None) == ["Hündin", "cat"]
    assert captions_of(sample(json=as_json), None) == ["one"]
    assert captions_of(sample(txt=b"other", json=as_json), "all") == ["two", "three"]
    for unusable in (
        captions_of(sample(json=as_json), "number"),
        captions_of(sample(json=b"{"), "all"),
        captions_of(sample(txt=b"\xff\xfe\xff"), None),
        captions_of(sample(txt=b" \n "), None),
        captions_of(sample(), None),
    ):
        assert unusable == []


def test_a_caption_key_needs_no_json_where_there_is_txt() -> None:
    assert captions_of(sample(txt=b"one\ntwo"), "captions") == ["one", "two"]
    assert captions_of(sample(txt=b"one", json=b'{"captions": ["three"]}'), "captions") == ["three"]
    assert captions_of(sample(txt=b"one", json=b'{"other": "four"}'), "captions") == []


def test_labels() -> None:
    assert label_of(sample(cls=b"7\n")) == 7
    assert label_of(sample()) == -1
    with pytest.raises(Unusable, match="frog"):
        label_of(sample(cls=b"frog"))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_every_mode_becomes_rgb() -> None:
    grey = Image.new("L", (9, 7), 128)
    sixteen = Image.fromarray(np.full((7, 9), 128 * 256, np.uint16))
    palette = grey.convert("P")
    contents = [
        encoded(grey, "PNG"),
        encoded(sixteen, "PNG"),
        encoded(grey.convert("RGBA"), "PNG"),
        encoded(grey.convert("LA"), "PNG"),
        encoded(palette, "PNG"),
        encoded(palette, "PNG", transparency=b"\x00\x10"),
        encoded(grey.convert("RGB").convert("CMYK"), "JPEG"),
        encoded(grey.convert("RGB"), "WEBP"),
    ]
    for content in contents:
        image = decode_image(content)
        assert (image.mode, image.size) == ("RGB", (9, 7))
        assert np.abs(np.asarray(image).astype(int) - 128).max() <= 3


def test_undecodable_images_are_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = jpeg(1, 200, 200)
    for content in (b"", b"no image", whole[: len(whole) // 2], encoded(Image.new("RGB", (5, 5)), "PNG")[:-30]):
        with pytest.raises(Unusable):
            decode_image(content)
    with pytest.raises(Unusable):
        image_bytes(sample(txt=b"a"))
    monkeypatch.setattr("model.preprocess.MOST_PIXELS", 100)
    with pytest.raises(Unusable, match="200 x 200"):
        decode_image(whole)


def test_a_large_jpeg_is_decoded_small_but_not_too_small() -> None:
    assert decode_image(jpeg(1, 800, 400), least_side=100).size == (200, 100)
    assert decode_image(jpeg(1, 800, 400), least_side=201).size == (800, 400)


def test_a_set_without_captions_is_told_at_the_start(tmp_path: Path) -> None:
    bare = write_shard(tmp_path / "bare.tar", [{"jpg": jpeg(1), "cls": 3, "json": {"text": "a"}}])
    good = write_shard(tmp_path / "good.tar", [pair(1)])
    check_captions([good, bare], None)
    check_captions([bare], "text")
    with pytest.raises(UserError, match=r"bare.tar: it holds .cls .jpg .json; .*data.caption_key"):
        check_captions([bare, good], None)
    with pytest.raises(UserError, match=r"data.caption_key=words"):
        check_captions([bare], "words")
    empty = write_shard(tmp_path / "empty.tar", [])
    check_captions([empty, good], None)
    with pytest.raises(UserError, match="no samples"):
        check_captions([empty], None)


def test_training_captions_are_bounded_and_spread(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, 4, 5)
    captions = list(training_captions(shards, None, 8))
    assert captions == [pair(shard * 5 + index)["txt"] for shard in range(4) for index in range(2)]
    assert captions == list(training_captions(shards, None, 8))
    assert len(list(training_captions(shards, None, 1000))) == 20
    short = write_shard(tmp_path / "short.tar", [pair(0)])
    assert len(list(training_captions([short, shards[0]], None, 6))) == 6
