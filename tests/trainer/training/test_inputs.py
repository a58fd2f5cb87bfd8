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
from trainer.checkpoint.progress import TrainingProgress
from trainer.config.schema import Config
from trainer.data.sources import check_training_data
from trainer.data.tokenizer import train_tokenizer
from trainer.distributed.processes import Processes
from trainer.errors import UserError
from trainer.training.inputs import find_pairs, locate_data, mixture_of, source_rows

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


def named(folder: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    """Two sources in a folder: web with captions under two keys, and pets with classes; with other keys set."""
    json = {"json": b'{"short": "a thing", "long": "a thing of a small set"}'}
    for number in range(3):
        write_shard(folder / f"web-{number}.tar", [pair(8 * number + index) | json for index in range(8)])
    write_shard(folder / "pets.tar", [{"jpg": jpeg(index), "cls": index % 2} for index in range(6)])
    (folder / "names.txt").write_text("cat\ndog\n")
    (folder / "prompts.txt").write_text("a {c}\n")
    web = {"shards": f"{folder}/web-{{0..2}}.tar", "captions": {"short": 0.5, "long": 0.5}}
    pets = {"shards": f"{folder}/pets.tar", "classes": f"{folder}/names.txt", "templates": f"{folder}/prompts.txt"}
    return {"web": web | changes.get("web", {}), "pets": pets | changes.get("pets", {})}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"web": {"shards": "DIR/web-{0..9}.tar"}}, ("data.train.web.shards: 7 of 10 shards are missing: ", "web-3.tar")),
        ({"web": {"shards": "DIR/empty.tar"}}, ("data.train.web.shards: 1 of 1 shards are empty files: ", "empty.tar")),
        ({"web": {"shards": "DIR/none*"}}, ("data.train.web.shards", "no shards match")),
        ({"web": {"captions": {"short": 0.5, "lnog": 0.5}}}, ("data.train.web.captions: none of the first", "'lnog'; name keys")),
        (
            {"web": {"captions": "lnog"}},
            ("data.train.web: no captions in shard", "its .json has no 'lnog' (its keys: 'short', 'long')"),
        ),
        ({"web": {"min_side": 21}}, ("data.train.web: all 12 samples", "20 pixels on the shorter side, fewer than min_side=21")),
        ({"web": {"min_length": 90}}, ("data.train.web: all 12 samples", "'a thing' has fewer characters than min_length=90")),
        ({"web": {"classes": "DIR/names.txt", "captions": None}}, ("data.train.web: no captions", "it has no .cls")),
        ({"pets": {"classes": "DIR/none.txt"}}, ("data.train.pets.classes=", "none.txt is no file and no word")),
        ({"pets": {"classes": "DIR"}}, ("classnames.txt is missing",)),
        ({"pets": {"templates": "DIR/names.txt"}}, ("names.txt: 'cat' does not say where the class name goes",)),
        (
            {"pets": {"epochs": 999}},
            ("data.train: the epochs of pets take 5,994 pairs", "nothing remains for web: ", "train.steps="),
        ),
    ],
)
def test_what_is_wrong_with_a_source_is_named(config: Config, tmp_path: Path, changes: dict[str, Any], parts: tuple[str, ...]):
    (tmp_path / "empty.tar").touch()
    for keys in changes.values():
        keys |= {key: value.replace("DIR", str(tmp_path)) for key, value in keys.items() if isinstance(value, str)}
    config.data.train, config.data.tokenizer, config.train.steps = named(tmp_path, **changes), None, 20
    with pytest.raises(UserError) as caught:
        find_pairs(config, tmp_path / "run", ALONE)
    told = str(caught.value)
    assert "\n" not in told
    assert all(part in told for part in parts), told


def test_a_tokenizer_learns_from_all_sources_as_much_as_they_come(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    learned: list[str] = []

    def learn(captions: Any, path: Path, *rest: Any) -> None:
        learned.extend(captions)
        path.write_bytes((tmp_path / "t.model").read_bytes())

    monkeypatch.setattr("trainer.training.inputs.train_tokenizer", learn)
    config.data.train = named(tmp_path, web={"weight": 3})
    config.data.tokenizer, config.data.tokenizer_captions = None, 16
    find_pairs(config, tmp_path / "run", ALONE)
    assert learned == [*["a thing", "a thing of a small set"] * 6, *["a cat", "a dog"] * 2]


def test_a_shard_of_two_sources_is_told(config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config.data.train = named(tmp_path) | {"again": f"{tmp_path}/web-1.tar"}
    find_pairs(config, tmp_path / "run", ALONE)
    assert "data.train.web and data.train.again have 1 shards in common, whose pairs come from both: " in caplog.text


def test_shares_that_change_in_a_run_hold_from_there_on_and_are_told(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config.data.train, config.train.steps, config.train.batch_size = named(tmp_path), 50, 10
    progress = TrainingProgress(streams=1)
    first = mixture_of(config, check_training_data(config), progress)
    progress.pairs, progress.mixture = 100, first.recorded()
    assert mixture_of(config, check_training_data(config), progress).phases == first.phases
    assert not caplog.records
    config.data.train = named(tmp_path, web={"weight": 3.0})
    later = mixture_of(config, check_training_data(config), progress)
    assert [(phase.pairs, phase.parts) for phase in later.phases] == [(0, {"web": 1, "pets": 1}), (100, {"web": 3, "pets": 1})]
    assert later.drawn_by_all(1, 200) == {"web": 125, "pets": 75}
    assert (
        "data.train: from pair 100 on, web 50.0% -> 75.0%, pets 50.0% -> 25.0%; each source continues where it stopped"
        in caplog.text
    )
    progress.mixture = later.recorded()
    config.data.train = f"{tmp_path}/web-*.tar"
    assert "from pair 100 on, web 75.0% -> 0.0%" not in caplog.text
    assert [phase.pairs for phase in mixture_of(config, check_training_data(config), progress).phases] == [0, 100]
    assert "web 75.0% -> 0.0%, pets 25.0% -> 0.0%, the unnamed source 0.0% -> 100.0%" in caplog.text


def test_epochs_are_passes_over_the_pairs_that_are_there(config: Config, tmp_path: Path):
    config.data.train, config.train.steps, config.train.batch_size = named(tmp_path, pets={"epochs": 4.0}), 10, 12
    (phase,) = mixture_of(config, check_training_data(config), TrainingProgress()).phases
    assert phase.parts == {"web": 4, "pets": 1}, "24 of 120 pairs are 4 passes over 6"
    rows = source_rows(config, check_training_data(config), TrainingProgress())
    assert rows == [
        ("  share of web", "80.0% (weight 1): 3 shards, about 24 pairs, 4 epochs in the run"),
        ("  share of pets", "20.0% (4 epochs): 1 shards, about 6 pairs, 4 epochs in the run"),
    ]
    config.data.train = f"{tmp_path}/web-*.tar"
    assert source_rows(config, check_training_data(config), TrainingProgress()) == [
        ("  epochs", "5 in the run, of about 24 pairs")
    ]
