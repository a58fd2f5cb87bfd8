"""Patterns, and what is said when they do not fit."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.trainer.data.shards_on_disk import write_shards
from trainer.data.shards.patterns import list_shards
from trainer.errors import UserError


def test_braces_lists_directories_and_wildcards_name_the_same_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = write_shards(tmp_path, 3, 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list_shards(f"{tmp_path}/train-{{000..002}}.tar", "data.train") == shards
    assert list_shards(f"{tmp_path}/train-{{000,001,002}}.tar", "data.train") == shards
    assert list_shards(shards, "data.train") == shards
    assert list_shards(OmegaConf.create({"train": shards}).train, "data.train") == shards
    assert list_shards(tmp_path, "data.train") == shards
    assert list_shards(f"{tmp_path}/train-*.tar", "data.train") == shards
    assert list_shards("~/train-00[0-2].tar", "data.train") == shards
    assert list_shards("~/train-{000..002}.tar", "data.train") == shards
    assert list_shards(f"file://{shards[0]}", "data.train") == shards[:1]


def test_clip_benchmark_folders(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "test"
    folder.mkdir(parents=True)
    for index, shard in enumerate(write_shards(tmp_path, 11, 1)):
        Path(shard).rename(folder / f"{index}.tar")
    (folder / "nshards.txt").write_text("11\n")
    expected = [str(folder / f"{index}.tar") for index in range(11)]  # by number: 10 after 9
    assert list_shards(str(folder), "eval.zeroshot") == expected
    assert list_shards(str(tmp_path / "set"), "eval.zeroshot") == expected


def test_commands_and_urls_are_expanded_but_not_looked_at() -> None:
    assert list_shards("pipe:cat /nowhere/{00..01}.tar", "data.train") == ["pipe:cat /nowhere/00.tar", "pipe:cat /nowhere/01.tar"]
    assert list_shards("https://example.org/a.tar", "data.train") == ["https://example.org/a.tar"]


def broken(tmp_path: Path, content: bytes) -> list[str]:
    shards = write_shards(tmp_path, 3, 1)
    Path(shards[1]).write_bytes(content)
    return shards


def test_errors_name_the_key_and_the_shard(tmp_path: Path) -> None:
    cases = {
        "data.train is not set": lambda: None,
        "no shards match": lambda: f"{tmp_path}/nothing-*.tar",
        "no shards match; .*nothing.tar does not exist": lambda: f"{tmp_path}/nothing.tar",
        "no shards match; the directory": lambda: str(tmp_path),
        "the braces": lambda: "/x/{000..002.tar",
        "expected a shard pattern": lambda: 5,
        "an empty shard pattern": lambda: ["a.tar", " "],
        "4 of 7 shards are missing: .*train-003.tar, .*train-004.tar, .*train-005.tar and 1 more": lambda: (
            write_shards(tmp_path, 3, 1) and f"{tmp_path}/train-{{000..006}}.tar"
        ),
        "1 of 3 shards are empty files: .*train-001.tar": lambda: broken(tmp_path, b""),
        "train-001.tar is not a tar archive": lambda: broken(tmp_path, b"no archive" * 200),
    }
    for message, make in cases.items():
        with pytest.raises(UserError, match=message) as raised:
            list_shards(make(), "data.train")
        assert "data.train" in str(raised.value)
        assert "\n" not in str(raised.value)
