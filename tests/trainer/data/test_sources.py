"""What is seen of the data before a run: a few samples of a few shards, and that nobody is judged on what it learned."""

import logging
import os
from pathlib import Path

import pytest

from tests.trainer.data.shards_on_disk import pair, write_shard, write_shards
from trainer.config.schema import Config, DataConfig
from trainer.data import look
from trainer.data.sources import check_apart, check_evaluation_data, check_training_data, with_shapes
from trainer.errors import UserError


def config(train: object) -> Config:
    made = Config()
    made.data.train = train
    return made


@pytest.mark.parametrize(
    ("zeroshot", "left"),
    [(None, ["default", "unseen"]), ({"unseen": None}, ["default"]), ({"default": None, "unseen": None}, []), ({}, [])],
)
def test_an_embedded_set_can_be_switched_off(zeroshot: object, left: list[str], tmp_path: Path) -> None:
    made = Config()
    made.data.kind, made.eval.zeroshot = "shapes", zeroshot
    assert list(with_shapes(made, tmp_path).eval.zeroshot) == left


def test_sets_of_ones_own_stand_alone(tmp_path: Path) -> None:
    made = Config()
    made.data.kind, made.eval.zeroshot = "shapes", {"mine": "/x", "unseen": None}
    made.eval.fewshot = {"train": "/a", "test": "/b"}
    located = with_shapes(made, tmp_path)
    assert (located.eval.zeroshot, located.eval.fewshot) == (made.eval.zeroshot, made.eval.fewshot)


def test_a_set_that_is_not_there_cannot_be_switched_off(tmp_path: Path) -> None:
    made = Config()
    made.data.kind = "shapes"
    for key, told in (
        ("zeroshot", "unsen=null: data.kind=shapes has no set of that name (did you mean 'unseen'?); it has default, unseen"),
        ("fewshot", "unsen=null: data.kind=shapes has no set of that name"),
    ):
        setattr(made.eval, key, {"unsen": None})
        with pytest.raises(UserError) as caught:
            with_shapes(made, tmp_path)
        assert f"eval.{key}.{told}" in str(caught.value)
        setattr(made.eval, key, None)


def test_the_first_and_last_shard_and_what_was_seen_are_told(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, 20, 6)
    (source,) = check_training_data(config(str(tmp_path)))
    found = source.shards
    assert found.names == shards
    assert found.told() == f"20 shards, {shards[0]} … {shards[-1]}: 32 captions in 32 of 32 samples of 8 shards looked at"


def test_few_of_many_shards_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def read(shard: str, remote: object) -> object:
        opened.append(shard)
        yield from ()

    monkeypatch.setattr(look, "read_samples", read)
    look.look_at([f"{number}.tar" for number in range(10_000)], DataConfig(), look.judge_pair)
    assert (len(opened), opened[0], opened[-1]) == (8, "0.tar", "9999.tar")
    opened.clear()
    look.look_at([f"http://x/{number}.tar" for number in range(10_000)], DataConfig(), look.judge_pair)
    assert opened == ["http://x/0.tar", "http://x/9999.tar"]


def test_images_that_nothing_decodes_are_told_before_the_start(tmp_path: Path) -> None:
    shards = [write_shard(tmp_path / f"{number}.tar", [{"jpg": b"no image", "txt": "a"}] * 9) for number in range(3)]
    with pytest.raises(
        UserError, match=r"data.train: all 12 samples looked at cannot be used; .*0.tar/000000: image cannot"
    ) as raised:
        check_training_data(config(shards))
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"data.val: all 12 samples looked at cannot be used"):
        check_evaluation_data("data.val", shards, [], DataConfig())


def test_a_part_that_cannot_be_used_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = write_shards(tmp_path, 2, 3)
    write_shard(Path(shards[1]), [{"jpg": b"no image", "txt": "a"}])
    with caplog.at_level(logging.WARNING):
        assert check_training_data(config(shards))[0].shards.look.usable == 3
    assert f"data.train: some of the samples looked at cannot be used: {shards[1]}/000000: image cannot be decoded" in caplog.text


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("pipe:echo no such bucket >&2; exit 3", "the command ended with exit code 3: no such bucket"),
        ("http://127.0.0.1:9/a.tar", "Connection refused"),
        ("pipe:echo '<html>'", "truncated header"),
    ],
)
def test_shards_that_cannot_be_opened_say_why(monkeypatch: pytest.MonkeyPatch, command: str, told: str) -> None:
    monkeypatch.setattr("trainer.data.shards.remote.persistent.FIRST_WAIT", 0.001)
    with pytest.raises(UserError, match=r"data.train: the only shard opened cannot be read; ") as raised:
        check_training_data(config(command))
    assert told in str(raised.value)


@pytest.mark.parametrize("spelling", ["same", "symbolic link", "hard link", "through another folder", "relative"])
def test_evaluation_shards_that_are_training_shards_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    shards = write_shards(tmp_path, 3, 2)
    other = write_shard(tmp_path / "val.tar", [pair(9)])
    name = {
        "same": shards[1],
        "symbolic link": f"{tmp_path}/link.tar",
        "hard link": f"{tmp_path}/hard.tar",
        "through another folder": f"{tmp_path}/folder/../train-001.tar",
        "relative": "train-001.tar",
    }[spelling]
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.tar").symlink_to(shards[1])
    os.link(shards[1], tmp_path / "hard.tar")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data.val: 1 of 2 evaluation shards are training shards too \(.*\): evaluate on others"):
        check_apart("data.val", [other, name], shards)
    check_apart("data.val", [other], shards)
    with pytest.raises(UserError, match=r"eval\.zeroshot"):
        check_apart("eval.zeroshot", ["http://x/0.tar"], ["http://x/1.tar", "http://x/0.tar"])


def test_a_break_that_is_seen_at_the_start_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = write_shards(tmp_path, 3, 3)
    Path(shards[1]).write_bytes(Path(shards[1]).read_bytes().rstrip(b"\0"))
    with caplog.at_level(logging.WARNING):
        assert check_training_data(config(shards))[0].shards.look.broken.keys() == {shards[1]}
    assert len(caplog.records) == 1
    assert f"{shards[1]}: the shard ends early: " in caplog.text
