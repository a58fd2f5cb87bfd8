"""`python -m trainer.shards`: from an input to shards that train, what it refuses, and how it goes on."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.trainer.data.shards_on_disk import jpeg, small_tokenizer
from tests.trainer.shards.made import contents, pairs, photos, samples, write
from trainer.config.compose import compose_config
from trainer.config.schema import DataConfig
from trainer.data.loader import training_loader
from trainer.data.shards.patterns import list_shards
from trainer.data.shards.write import ShardWriter
from trainer.errors import UserError
from trainer.shards.__main__ import STOPS, look_only, main
from trainer.shards.plan import Item
from trainer.shards.record import Record, Records
from trainer.shards.request import read_arguments
from trainer.shards.work import Outcome, Work

OF_THE_WRITER = ("bad.jsonl", "shards.json", "sizes.json")


def test_a_folder_becomes_shards_with_a_part_held_out(tmp_path: Path):
    source = photos(tmp_path / "photos", 20)
    (source / "page.jpg").write_text("<html>not found</html>")
    (source / "page.txt").write_text("a page")
    told = write(source, f"output={tmp_path / 'out'}", "pairs=5", "val=4")
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert names == {*OF_THE_WRITER, *(f"train-{number:06}.tar" for number in range(4)), "val-000000.tar"}
    written = pairs(out) + pairs(out, "val")
    assert sorted(caption for _, _, (caption,) in written) == sorted(f"picture number {number}" for number in range(20))
    assert [key for key, _, _ in written] != sorted(key for key, _, _ in written), "shuffled"
    for sample in samples(out):
        assert sample.files["jpg"] == (source / f"{sample.key}.jpg").read_bytes(), "small enough as it is"
    sizes = json.loads((out / "sizes.json").read_text())
    assert sum(sizes.values()) == 20 and list(sizes.values())[1:4] == [5, 5, 5]
    manifest = json.loads((out / "shards.json").read_text())
    assert {name: shard["bytes"] for name, shard in manifest["shards"].items()} == {
        path.name: path.stat().st_size for path in out.glob("*.tar")
    }
    assert manifest["left_out"] == {"image cannot be decoded": 1}
    assert json.loads((out / "bad.jsonl").read_text()) == {
        "key": "page",
        "kind": "image cannot be decoded",
        "why": "it is an HTML page",
    }
    assert f"1 left out, listed in {out}/bad.jsonl: 1 image cannot be decoded" in told


def test_the_command_at_the_end_reads_the_same_pairs_in_the_training_loader(tmp_path: Path):
    source, out = photos(tmp_path / "my photos", 12), tmp_path / "shards, all (1)"
    told = write(source, f"output={out}", "pairs=5", "val=3")
    program, *overrides = shlex.split(told[-1])[2:]
    config = compose_config(overrides)
    assert program == "trainer.train" and config.data.kind == "webdataset"
    shards, held_out = list_shards(config.data.train, "data.train"), list_shards(config.data.val, "data.val")
    assert [Path(shard).name for shard in shards] == ["train-000000.tar", "train-000001.tar"]
    assert [Path(shard).name for shard in held_out] == ["val-000000.tar"]
    loader = training_loader(
        DataConfig(workers=0, shuffle_buffer=0, train=config.data.train),
        shards=shards,
        tokenizer=small_tokenizer(tmp_path),
        image_size=16,
        text_length=12,
        batch_size=9,
        rank=0,
        world=1,
        seed=0,
        start=0,
        progress=None,
    )
    with closing(loader):
        read = {Path(sample_id).name for sample_id in next(loader).ids}
    assert read == {Path(key).name for key, _, _ in pairs(out)} and len(read) == 9
    assert not read & {Path(key).name for key, _, _ in pairs(out, "val")}


def test_several_captions_are_lines_and_the_command_says_so(tmp_path: Path):
    source = photos(tmp_path / "photos", 4)
    table = tmp_path / "captions.csv"
    rows = [f"photos/{path.relative_to(source)},{path.stem} {word}" for word in "ab" for path in sorted(source.rglob("*.jpg"))]
    table.write_text("\n".join(["path,caption", *rows]))
    told = write(table, f"output={tmp_path / 'out'}")
    assert "data.caption_lines=true" in told[-1]
    for key, _, captions in pairs(tmp_path / "out"):
        assert captions == [f"{Path(key).name} a", f"{Path(key).name} b"]


class Killed(BaseException):
    """Ends the writer wherever it is."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """20 images, two of them damaged, one of which is the last."""
    source = photos(tmp_path / "photos", 20)
    for name in ("city/photo004", "city/photo018"):
        (source / f"{name}.jpg").write_bytes(b"damaged")
    return source


def stop_at(patch: pytest.MonkeyPatch, place: int) -> None:
    """Let the conversion of a sample, counted from 0, end the writer."""
    convert, calls = Work.convert, iter(range(100))

    def convert_until(self: Work, item: Item) -> Outcome:
        if next(calls) == place:
            raise Killed
        return convert(self, item)

    patch.setattr(Work, "convert", convert_until)


GIVEN = ("pairs=4", "val=3", "max_bytes=9K", "shuffle=false")


@pytest.mark.parametrize("place", [0, 4, 13, 19])
def test_what_is_stopped_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, place: int
):
    out = tmp_path / "out"
    write(source, f"output={tmp_path / 'whole'}", *GIVEN)
    with monkeypatch.context() as patch:
        stop_at(patch, place)
        with pytest.raises(Killed):
            write(source, f"output={out}", *GIVEN)
    assert not (out / "shards.json").exists()
    write(source, f"output={out}", *GIVEN)
    assert contents(out) == contents(tmp_path / "whole")
    assert len(pairs(out) + pairs(out, "val")) == 18
    assert json.loads((out / "shards.json").read_text())["left_out"] == {"image cannot be decoded": 2}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_shard_that_was_not_written_down_is_written_again(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, count: int
):
    out = tmp_path / "out"
    write(source, f"output={tmp_path / 'whole'}", *GIVEN)
    add, calls = Records.add, iter(range(1, 100))

    def add_until(self: Records, record: Record) -> None:
        if next(calls) == count:
            with (out / ".unfinished" / "records.jsonl").open("ab") as file:
                file.write(b'{"part": "tr')
            raise Killed
        add(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Records, "add", add_until)
        with pytest.raises(Killed):
            write(source, f"output={out}", *GIVEN)
    write(source, f"output={out}", *GIVEN)
    assert contents(out) == contents(tmp_path / "whole")


def test_what_is_complete_is_left_as_it_is(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    told = write(source, f"output={out}", *GIVEN)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    assert write(source, f"output={out}", *GIVEN) == told
    assert capsys.readouterr().out == "complete already: nothing to do\n"
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_other_settings_do_not_go_on_with_what_was_begun(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_at(patch, 12)
        with pytest.raises(Killed):
            write(source, f"output={out}", "pairs=2")
    with pytest.raises(UserError, match=r"was begun with pairs=2, not pairs=3: give the same to go on, or delete .*out to start"):
        write(source, f"output={out}", "pairs=3")
    write(source, f"output={out}", "pairs=2")
    with pytest.raises(UserError, match=r"was written with pairs=2 seed=0, not pairs=3 seed=1: choose another output"):
        write(source, f"output={out}", "pairs=3", "seed=1")


def test_other_settings_begin_anew_while_no_shard_is_finished(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Records, "add", lambda *_: 1 / 0)  # the first shard is in place by then
        with pytest.raises(ZeroDivisionError):
            write(source, f"output={out}", "pairs=2", "name=first")
    write(source, f"output={out}", "pairs=3", "name=second")
    write(source, f"output={tmp_path / 'whole'}", "pairs=3", "name=second")
    assert contents(out) == contents(tmp_path / "whole")


def test_a_mistake_leaves_nothing_and_can_be_mended(tmp_path: Path):
    source, out = photos(tmp_path / "photos", 3), tmp_path / "out"
    for text in source.rglob("*.txt"):
        text.rename(text.with_suffix(".text"))
    told = r"^none of the 3 samples can be used: no caption; for example, (city|beach)/photo00\d: it contains .jpg$"
    with pytest.raises(UserError, match=told):
        write(source, f"output={out}")
    assert not out.exists()
    for text in source.rglob("*.text"):
        text.rename(text.with_suffix(".txt"))
    write(source, f"output={out}")
    assert len(pairs(out)) == 3


def test_the_held_out_part_is_the_same_for_every_seed(tmp_path: Path):
    source = photos(tmp_path / "photos", 40)
    for seed in (0, 1):
        write(source, f"output={tmp_path / str(seed)}", f"seed={seed}", "val=0.2")
    held_out = [sorted(key for key, _, _ in pairs(tmp_path / str(seed), "val")) for seed in (0, 1)]
    assert held_out[0] == held_out[1] and 2 <= len(held_out[0]) <= 16
    assert pairs(tmp_path / "0") != pairs(tmp_path / "1")


def test_without_shuffling_the_order_is_that_of_the_input(tmp_path: Path):
    write(photos(tmp_path / "photos", 9), f"output={tmp_path / 'out'}", "shuffle=false", "name=mine")
    keys = [key for key, _, _ in pairs(tmp_path / "out")]
    assert keys == sorted(keys) and (tmp_path / "out" / "mine-train-000008.tar").is_file()


def test_a_look_says_what_would_be_written(tmp_path: Path):
    source = photos(tmp_path / "photos", 10)
    (source / "city" / "none.jpg").write_bytes(jpeg(3))
    request = read_arguments([str(source), f"output={tmp_path / 'out'}", "dry=true", "workers=0", "short_side=16", "val=2"])
    told = look_only(request)
    assert told[:4] == [
        "11 samples: 2 for val, 9 for train",
        "all looked at: 10 can be written, 10 of them made smaller",
        "1 cannot: 1 no caption",
        "  city/none: no caption: it contains .jpg",
    ]
    assert not (tmp_path / "out").exists()


@pytest.fixture
def signals_as_they_were() -> Iterator[None]:
    """Undo what the command does to signals."""
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals_as_they_were")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "input=PLACE is missing"),
        (["PHOTOS"], "output=DIR is missing"),
        (["/nowhere", "output=OUT"], "input=/nowhere does not exist"),
        (["/nowhere.csv", "output=OUT"], "/nowhere.csv does not exist"),
        (["/nowhere-{00..03}.tar", "output=OUT"], "4 of 4 shards do not exist: /nowhere-00.tar"),
        (["PHOTOS", "output=PHOTOS"], "contains other things (beach, city): give a new or empty folder"),
        (["PHOTOS/city", "output=PHOTOS/city/photo000.txt"], "is a file: give a folder"),
        (["OUT", "output=OUT"], "no samples in it"),
        (["PHOTOS", "output=OUT", "pairs=0"], "pairs=0 must be a whole number, at least 1"),
        (["PHOTOS", "output=OUT", "val=1.5"], "val=1.5 must be a share below 1"),
        (["PHOTOS", "output=OUT", "val=7"], "val=7 leaves nothing to train on: there are 4 samples"),
        (["PHOTOS", "output=OUT", "max_bytes=many"], "max_bytes=many must be a size such as 500M or 2G"),
        (["PHOTOS", "output=OUT", "quality=101"], "quality=101 must be from 1 to 100"),
        (["PHOTOS", "output=OUT", "format=gif"], "format=gif: choose jpeg, webp or png"),
        (["PHOTOS", "output=OUT", "background=red"], "background=red must be red, green and blue"),
        (["PHOTOS", "output=OUT", "max_aspect=0.5"], "max_aspect=0.5 must be at least 1"),
        (["PHOTOS", "output=OUT", "name=my/val"], "name=my/val: a word of letters"),
        (["PHOTOS", "output=OUT", "path_column=a"], "path_column= is for tables, and input="),
        (["PHOTOS", "output=OUT", "shuffle=false", "seed=1"], "seed= is for shuffle=true"),
        (["PHOTOS", "output=OUT", "shufle=false"], "(did you mean 'shuffle'?)"),
        (["PHOTOS", "output=s3://bucket/x"], "output=s3://bucket/x: a path is needed here"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    source, out = photos(tmp_path / "photos", 4), tmp_path / "out"
    out.mkdir()
    words = [word.replace("PHOTOS", str(source)).replace("OUT", str(out)) for word in arguments]
    monkeypatch.setattr(sys, "argv", ["shards", *words, "workers=0"])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert told in said and said.count("\n") == 1


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, out = photos(tmp_path / "photos", 4), tmp_path / "out"

    def full(self: ShardWriter, sample: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", full)
        with pytest.raises(UserError, match="No space left on device; what is finished stays"):
            write(source, f"output={out}")
    assert {path.name for path in out.iterdir()} <= {".unfinished", ".in_use"}
    write(source, f"output={out}")
    assert len(pairs(out)) == 4


def test_a_manifest_of_another_program_is_one_line(tmp_path: Path):
    (tmp_path / "shards.json").write_text('["train.tar"]')
    with pytest.raises(UserError, match=r"shards.json is not what trainer.shards writes .*: choose another output"):
        write(photos(tmp_path / "photos", 1), f"output={tmp_path}")


def test_two_writers_do_not_share_an_output(tmp_path: Path):
    source, out = photos(tmp_path / "photos", 4), tmp_path / "out"
    (out / ".unfinished").mkdir(parents=True)
    code = "import sys, pathlib, trainer.training.lock as lock; lock.claim(pathlib.Path(sys.argv[1])); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"\n"
        in_use = f"out is in use by process {other.pid} on .*: wait for it to end, or choose another output"
        with pytest.raises(UserError, match=in_use):
            write(source, f"output={out}")
        other.kill()
