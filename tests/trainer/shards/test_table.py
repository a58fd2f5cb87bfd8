"""Tables of paths and captions, in the forms that people have."""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.trainer.data.shards_on_disk import jpeg
from tests.trainer.shards.made import pairs, samples, write
from trainer.errors import UserError
from trainer.shards.source import Found
from trainer.shards.table import Columns, Table
from trainer.shards.unfit import Bad

LIKELIEST = Columns()


def found_in(table: Path, columns: Columns = LIKELIEST, metadata: bool = True) -> list[Found | Bad]:
    return list(Table([table], columns, None, metadata).find())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"path,caption\na/1.jpg,one\n"),
        ("t.csv", b'filepath;title\r\n"a/1.jpg";"one"\r\n'),
        ("t.csv", b"filepath\ttitle\na/1.jpg\tone\n"),  # open_clip's
        ("t.tsv", b"caption\tpath, of a kind\tpath\none\t,,,\ta/1.jpg\n"),
        ("t.csv", "\ufeffPath,Caption\na/1.jpg,one\n".encode()),
        ("t.csv", "path,caption\na/1.jpg,one\n".encode("utf-16")),
        ("t.csv", b"image,text\na/1.jpg,  one \n\n"),
    ],
)
def test_the_usual_forms(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    [found] = found_in(tmp_path / name, metadata=False)
    assert found == Found("a/1", [0, "a/1.jpg", ["one"], {}])


def test_rows_of_one_image_are_one_sample_and_other_columns_are_kept(tmp_path: Path):
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    rows = ["path,caption,alt,source", "0.jpg,a,b,x", "1.jpg,c,,", '0.jpg,"d, e",b,y', "0.jpg,a,,"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    write(tmp_path / "t.csv", f"output={tmp_path / 'out'}", "caption_column=caption,alt", "shuffle=false")
    assert [(key, captions) for key, _, captions in pairs(tmp_path / "out")] == [("0", ["a", "b", "d, e"]), ("1", ["c"])]
    first, second = samples(tmp_path / "out")
    assert json.loads(first.files["json"]) == {"source": "x"} and set(second.files) == {"jpg", "txt"}


def test_paths_are_relative_to_the_table_or_to_root(tmp_path: Path):
    for folder in ("tables", "images"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(jpeg(1))
    absolute = tmp_path / "images" / "1.jpg"
    for number, (path, given) in enumerate([("../images/1.jpg", []), ("1.jpg", [f"root={tmp_path}/images"]), (absolute, [])]):
        (tmp_path / "tables" / "t.csv").write_text(f"path,caption\n{path},one\n")
        write(tmp_path / "tables" / "t.csv", f"output={tmp_path / str(number)}", *given)
        assert pairs(tmp_path / str(number))[0][2] == ["one"]


def test_what_is_missing_is_listed_and_not_fatal(tmp_path: Path):
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    (tmp_path / "t.csv").write_text("path,caption\n1.jpg,one\nnone.jpg,two\n,three\n")
    write(tmp_path / "t.csv", f"output={tmp_path / 'out'}")
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert [(entry["key"], entry["kind"]) for entry in bad[:1]] == [("t.csv, row 3", "no image")]
    assert sorted((entry["key"], entry["kind"]) for entry in bad[1:]) == [("none", "file is missing")]
    assert len(pairs(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("content", "columns", "told"),
    [
        (b"", Columns(), "t.csv is empty: its first line should name the columns"),
        (b"a,b\n1,2\n", Columns(), "path, filepath, file_path, file or the like: set path_column=NAME; its columns are a, b"),
        (b"path,b\n1,2\n", Columns(), "set caption_column=NAME"),
        (b"path,captoin\n1,2\n", Columns(caption="caption"), r"t.csv has no such column \(did you mean 'captoin'"),
        (b"path,caption\nhttp://x/1.jpg,one\n", Columns(), "row 1: 'http://x/1.jpg' is an address: load the images first"),
        (b"path,caption\n1.jpg,caf\xe9\n", Columns(), "is not UTF-8 .*: convert it to UTF-8"),
        (b"url,status,caption\nx,success,one\n", Columns(), "is img2dataset's record of a shard: give the folder that it is in"),
        (b'path,caption\n1.jpg,"one\n' + b"2.jpg,two\n" * 20_000, Columns(), "row 1: a quotation mark is not closed"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes, columns: Columns, told: str):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=told) as problem:
        found_in(tmp_path / "t.csv", columns)
    assert "\n" not in str(problem.value)


def test_several_tables_are_one_input(tmp_path: Path):
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    for number in range(2):
        (tmp_path / f"t{number}.csv").write_text(f"path,caption\n1.jpg,caption {number}\n")
    write(f"{tmp_path}/t{{0,1}}.csv", f"output={tmp_path / 'braces'}")
    write(f"{tmp_path}/t*.csv", f"output={tmp_path / 'wildcard'}")
    assert pairs(tmp_path / "braces") == pairs(tmp_path / "wildcard")
    assert pairs(tmp_path / "braces")[0][2] == ["caption 0", "caption 1"]


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_without_its_extra_names_it(tmp_path: Path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r'Parquet needs pyarrow: pip install "limoe-trainer\[parquet\]"; or'):
        write(tmp_path / "t.parquet", f"output={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_parquet_is_read_with_lists_of_captions(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    columns = {"path": ["1.jpg", "2.jpg"], "captions": [["a", "b"], None], "score": [0.5, float("nan")], "raw": [b"x", b"y"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    write(tmp_path / "t.parquet", f"output={tmp_path / 'out'}")
    [sample] = samples(tmp_path / "out")
    assert pairs(tmp_path / "out")[0][2] == ["a", "b"] and json.loads(sample.files["json"]) == {"score": 0.5}
    parquet.write_table(pyarrow.table({"image": [{"bytes": b"x", "path": "1.jpg"}], "text": ["a"]}), tmp_path / "hf.parquet")
    with pytest.raises(UserError, match="column 'image' holds the images themselves, not paths"):
        found_in(tmp_path / "hf.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"bad.parquet cannot be read as Parquet"):
        found_in(tmp_path / "bad.parquet")
