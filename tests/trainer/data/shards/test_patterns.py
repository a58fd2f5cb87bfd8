"""Patterns, and what is said when they do not fit."""

import logging
import os
import tarfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.trainer.data.shards_on_disk import pair, write_shard, write_shards
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
        "train-001.tar is not a readable tar archive": lambda: broken(tmp_path, b"no archive" * 200),
    }
    for message, make in cases.items():
        with pytest.raises(UserError, match=message) as raised:
            list_shards(make(), "data.train")
        assert "data.train" in str(raised.value)
        assert "\n" not in str(raised.value)


def laid_out(root: Path, *names: str) -> Path:
    """A data set with a shard of one pair at each of these places."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".tar"):
            write_shard(root / name, [pair(number)])
        else:
            (root / name).write_text("1\n")
    return root


def found(pattern: object, what: str, root: Path) -> list[str]:
    return [str(Path(shard).relative_to(root)) for shard in list_shards(pattern, what)]


CLIP_BENCHMARK = ["train/nshards.txt", "train/0.tar", "test/nshards.txt", "test/0.tar"]
SIDE_BY_SIDE = ["train-0.tar", "train-1.tar", "test-0.tar", "val-0.tar"]
MIXED = ["train-0.tar", "val/0.tar", "test/nshards.txt", "test/0.tar"]
UNNAMED = ["0.tar", "1.tar", "test/0.tar"]


@pytest.mark.parametrize(
    ("names", "train", "val", "zeroshot"),
    [
        (CLIP_BENCHMARK, ["train/0.tar"], ["test/0.tar"], ["test/0.tar"]),
        (SIDE_BY_SIDE, ["train-0.tar", "train-1.tar"], ["val-0.tar"], ["test-0.tar"]),
        (MIXED, ["train-0.tar"], ["val/0.tar"], ["test/0.tar"]),
        (UNNAMED, ["0.tar", "1.tar"], ["test/0.tar"], ["test/0.tar"]),
        (["cc_train_0.tar", "cc_val_0.tar", "cc.tar"], ["cc_train_0.tar"], ["cc_val_0.tar"], ["cc_val_0.tar"]),
        (["0.tar", "test-0.tar"], ["0.tar"], ["test-0.tar"], ["test-0.tar"]),
    ],
)
def test_a_folder_gives_training_the_training_shards_and_evaluation_the_others(
    tmp_path: Path, names: list[str], train: list[str], val: list[str], zeroshot: list[str]
) -> None:
    root = laid_out(tmp_path / "set", *names)
    assert found(root, "data.train", root) == train
    assert found(root, "data.val", root) == val
    assert found(root, "eval.zeroshot", root) == zeroshot
    assert found(root, "eval.retrieval", root) == zeroshot


@pytest.mark.parametrize(
    ("names", "folder", "what", "told"),
    [
        (["test/nshards.txt", "test/0.tar"], "", "data.train", "test is another part"),
        (["test/nshards.txt", "test/0.tar"], "test", "data.train", "test is another part"),
        (["test-0.tar", "val-0.tar"], "", "data.train", "test-0.tar, .*val-0.tar are another part"),
        (["train-0.tar"], "", "data.val", "train-0.tar is another part"),
        (["train/0.tar"], "train", "eval.retrieval", "train is another part"),
    ],
)
def test_a_folder_of_another_part_is_refused_and_its_shards_can_be_named(
    tmp_path: Path, names: list[str], folder: str, what: str, told: str
) -> None:
    root = laid_out(tmp_path / "set", *names)
    with pytest.raises(UserError, match=told) as raised:
        list_shards(root / folder, what)
    assert what in str(raised.value)
    shards = [name for name in names if name.endswith(".tar")]
    assert found([str(root / name) for name in shards], what, root) == shards


def test_wildcards_leave_out_other_parts_and_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = laid_out(tmp_path / "set", *SIDE_BY_SIDE)
    with caplog.at_level(logging.WARNING):
        assert found(f"{root}/*.tar", "data.train", root) == ["train-0.tar", "train-1.tar"]
    assert "test-0.tar" in caplog.text
    assert "val-0.tar left out: another part of the data set by name" in caplog.text
    assert found(f"{root}/*.tar", "data.val", root) == ["val-0.tar"]
    other = laid_out(tmp_path / "other", *CLIP_BENCHMARK)
    assert found(f"{other}/*/*.tar", "data.train", other) == ["train/0.tar"]
    assert found(f"{other}/test/*.tar", "data.train", other) == ["test/0.tar"], "who says test means it"


def test_litter_in_folders_and_behind_wildcards_is_not_there(tmp_path: Path) -> None:
    root = laid_out(tmp_path / ".hidden" / "set", "a-0.tar", "a-1.tar")
    for name in ("._a-0.tar", ".a-0.tar.swp", "a-2.tar~", "a-3.tar.part"):
        (root / name).write_bytes(b"litter")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._a-0.tar").write_bytes(b"litter")
    for pattern in (root, f"{root}/*.tar", f"{root}/*a-*", f"{root.parent}/**/*.tar"):
        assert found(pattern, "data.train", root) == ["a-0.tar", "a-1.tar"], pattern


def test_compressed_shards_are_found_where_there_are_no_others(tmp_path: Path) -> None:
    for name in ("0.tar.gz", "1.TGZ"):
        with tarfile.open(tmp_path / name, "w:gz"):
            pass
    assert found(tmp_path, "data.train", tmp_path) == ["0.tar.gz", "1.TGZ"]
    write_shard(tmp_path / "0.tar", [pair(0)])
    assert found(tmp_path, "data.train", tmp_path) == ["0.tar"]


def test_a_shard_counts_once_by_whatever_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = write_shards(tmp_path, 4, 1)
    (tmp_path / "link").symlink_to(tmp_path)
    os.link(shards[1], tmp_path / "hard.tar")
    names = [
        f"{tmp_path}/train-{{000..002}}.tar",
        f"{tmp_path}/train-{{002..003}}.tar",
        f"{tmp_path}/link/train-000.tar",
        f"{tmp_path}/../{tmp_path.name}/train-000.tar",
        f"{tmp_path}/hard.tar",
        shards[3],
    ]
    with caplog.at_level(logging.WARNING):
        assert list_shards(names, "data.train") == shards
    assert "data.train names 5 shards more than once, which are read once" in caplog.text
    assert list_shards(["http://x/a.tar", "http://x/a.tar", "pipe:cat x"], "data.train") == ["http://x/a.tar", "pipe:cat x"]


def test_the_shards_that_a_refusal_proposes_are_there(tmp_path: Path) -> None:
    root = laid_out(tmp_path / "set", "test/0.tar", "test/1.tar")
    for folder in (root, root / "test"):
        with pytest.raises(UserError, match="if you do mean this part, name the shards") as raised:
            list_shards(folder, "data.train")
        proposed = str(raised.value).rpartition(" ")[2]
        assert found(proposed, "data.train", root) == ["test/0.tar", "test/1.tar"]


def test_a_wildcard_may_name_folders(tmp_path: Path) -> None:
    root = laid_out(tmp_path, "part-0/a.tar", "part-1/b.tar", "set/train/0.tar", "set/test/0.tar")
    assert found(f"{root}/part-*", "data.train", root) == ["part-0/a.tar", "part-1/b.tar"]
    assert found(f"{root}/set/*", "data.train", root) == ["set/train/0.tar"]
    assert found(f"{root}/set/*", "eval.retrieval", root) == ["set/test/0.tar"]


def test_names_that_no_line_can_hold_are_told_in_one(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/\xe9\n.tar"))
    odd.write_bytes(b"")
    with pytest.raises(UserError, match=r"\\udce9\\n.tar") as raised:
        list_shards(tmp_path, "data.train")
    assert str(raised.value).isprintable()
    with pytest.raises(UserError, match="NUL"):
        list_shards("/a\0b.tar", "data.train")
