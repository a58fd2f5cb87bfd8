"""Shards as they are found: whole, cut off, damaged."""

import logging
from pathlib import Path

import pytest

from tests.trainer.data.shards_on_disk import jpeg, write_shards
from trainer.data.shards.samples import read_samples


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
    assert caplog.text.count("the shard ends early") == 1
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
