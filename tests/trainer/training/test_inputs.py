"""Bad data at the start of a run: one line that names the key or the file, before anything is written."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.data.shards_on_disk import jpeg, pair, small_tokenizer, write_shard
from trainer.checkpoint.files import TOKENIZER
from trainer.config.schema import Config
from trainer.data.tokenizer import train_tokenizer
from trainer.distributed.processes import Processes
from trainer.errors import UserError
from trainer.training.inputs import find_pairs, locate_data

ALONE = Processes(0, 1, 0, torch.device("cpu"))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Good data; each test spoils one thing."""
    config = Config()
    config.data.train = write_shard(tmp_path / "train.tar", [pair(number) for number in range(8)])
    config.data.val = write_shard(tmp_path / "val.tar", [pair(number) for number in range(8, 12)])
    small_tokenizer(tmp_path)
    config.data.tokenizer = str(tmp_path / "t.model")
    (tmp_path / "run").mkdir()
    return config


def test_good_data_are_found_and_the_tokenizer_is_kept(config: Config, tmp_path: Path):
    found = find_pairs(locate_data(config, ALONE), tmp_path / "run", ALONE)
    assert found.shards == [config.data.train]
    assert (tmp_path / "run" / TOKENIZER).read_bytes() == (tmp_path / "t.model").read_bytes()


def set_to(name: str, value: Any) -> Callable[[Config, Path], None]:
    def spoil(config: Config, folder: Path) -> None:
        group, leaf = name.split(".")
        setattr(getattr(config, group), leaf, str(value).replace("DIR", str(folder)) if isinstance(value, str) else value)

    return spoil


def train_shard(write: Callable[[Path], Any]) -> Callable[[Config, Path], None]:
    def spoil(config: Config, folder: Path) -> None:
        write(folder / "bad.tar")
        config.data.train = str(folder / "bad.tar")

    return spoil


def labelled(test: str) -> Callable[[Config, Path], None]:
    def spoil(config: Config, folder: Path) -> None:
        examples = write_shard(folder / "examples.tar", [{"jpg": jpeg(1), "cls": 0}])
        config.eval.fewshot = {"train": examples, "test": str(folder / test)}

    return spoil


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (set_to("data.train", None), ("data.train is not set",)),
        (set_to("data.train", "DIR/none-{000..003}.tar"), ("data.train", "no shards match", "none-000.tar")),
        (set_to("data.train", "DIR/none-*.tar"), ("data.train", "no shards match")),
        (set_to("data.train", "DIR/run"), ("data.train", "no *.tar")),
        (set_to("data.train", "DIR/{a"), ("data.train", "braces")),
        (set_to("data.train", 3), ("data.train=3", "shard pattern")),
        (set_to("data.val", "DIR/none.tar"), ("data.val", "no shards match")),
        (set_to("eval.retrieval", "DIR/none.tar"), ("eval.retrieval", "no shards match")),
        (set_to("eval.zeroshot", "DIR/none"), ("eval.zeroshot", "none is not a folder")),
        (set_to("eval.zeroshot", "DIR/run"), ("classnames.txt is missing",)),
        (set_to("eval.zeroshot", 3), ("eval.zeroshot",)),
        (set_to("eval.fewshot", "DIR/none"), ("eval.fewshot: no shards match", "none does not exist", "training part")),
        (set_to("eval.fewshot", {"pets": 3}), ("eval.fewshot.pets=3: give a folder",)),
        (labelled(test="train.tar"), ("eval.fewshot (test part): 1 of 1 evaluation shards are training shards too",)),
        (labelled(test="val.tar"), ("eval.fewshot (test part): all 4 samples", "it has no .cls with its class index")),
        (set_to("eval.suite", "DIR/none"), ("eval.suite", "none is not a folder")),
        (set_to("eval.suite", "DIR/run"), ("eval.suite: neither", "classnames.txt")),
        (set_to("data.tokenizer", "DIR/none.model"), ("tokenizer", "none.model", "No such file")),
        (set_to("data.tokenizer", "DIR/train.tar"), ("tokenizer", "train.tar", "not a SentencePiece model")),
        (set_to("data.tokenizer", "DIR"), ("tokenizer", "Is a directory")),
        (train_shard(lambda path: path.touch()), ("bad.tar", "empty file")),
        (train_shard(lambda path: path.write_bytes(b"no tar" * 1000)), ("bad.tar", "not a readable tar archive")),
        (train_shard(lambda path: path.mkdir()), ("bad.tar", "no *.tar")),
        (train_shard(lambda path: write_shard(path, [{"jpg": jpeg(1)}])), ("bad.tar", "no captions", ".jpg")),
        (train_shard(lambda path: write_shard(path, [])), ("bad.tar", "no samples")),
    ],
)
def test_bad_data_are_named_in_one_line(
    config: Config, tmp_path: Path, spoil: Callable[[Config, Path], None], parts: tuple[str, ...]
):
    spoil(config, tmp_path)
    with pytest.raises(UserError) as caught:
        find_pairs(locate_data(config, ALONE), tmp_path / "run", ALONE)
    told = str(caught.value)
    assert "\n" not in told
    assert all(part in told for part in parts), told
    assert not list((tmp_path / "run").iterdir())


def test_a_caption_key_that_no_sample_has_is_named(config: Config, tmp_path: Path):
    config.data.train = write_shard(tmp_path / "json.tar", [{"jpg": jpeg(1), "json": b'{"caption": "a thing"}'}])
    config.data.caption_key = "text"
    with pytest.raises(UserError, match=r"no captions under data.caption_key=text in shard .*json.tar"):
        find_pairs(config, tmp_path / "run", ALONE)


def test_a_run_keeps_its_tokenizer_and_says_so(config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    find_pairs(config, tmp_path, ALONE)
    find_pairs(config, tmp_path, ALONE)
    assert not caplog.text
    kept = (tmp_path / TOKENIZER).read_bytes()
    config.data.tokenizer = str(tmp_path / "other.model")
    train_tokenizer(["quite other words", "than those before"], config.data.tokenizer, 40)
    find_pairs(config, tmp_path, ALONE)
    assert "other.model differs from this run's tokenizer, which stays" in caplog.text
    assert (tmp_path / TOKENIZER).read_bytes() == kept


def test_a_tokenizer_larger_than_the_models_table_says_what_to_set(config: Config, tmp_path: Path):
    config.model.vocabulary = 50
    with pytest.raises(UserError, match=r"t.model has (\d+) pieces, but model.vocabulary=50: set model.vocabulary=\1"):
        find_pairs(config, tmp_path / "run", ALONE)


def test_a_forgotten_data_val_is_told(config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config.data.val = None
    find_pairs(config, tmp_path / "run", ALONE)
    assert "data.val is not set, so retrieval is not evaluated" in caplog.text


def test_no_retrieval_needs_no_data_val(config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config.data.val, config.eval.retrieval = None, False
    find_pairs(config, tmp_path / "run", ALONE)
    assert not caplog.records


@pytest.mark.parametrize("trained", [True, False])
def test_a_disk_without_room_for_the_tokenizer_is_named(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: bool
):
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    config.data.tokenizer = None if trained else config.data.tokenizer
    with pytest.raises(UserError, match=r"^cannot write .*tokenizer\.model \(No space left on device\): make room"):
        find_pairs(config, tmp_path / "run", ALONE)
    assert not list((tmp_path / "run").iterdir())
