from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.evaluation.benchmark import BenchmarkSet, benchmark_sets


def made(folder: Path, kind: str | None = None, classes: bool = False) -> Path:
    folder.mkdir(parents=True)
    if kind is not None:
        (folder / "dataset_type.txt").write_text(f"{kind}\n")
    if classes:
        (folder / "classnames.txt").write_text("a\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made(tmp_path / "sets" / "pets", classes=True)
    made(tmp_path / "sets" / "flickr", "retrieval")
    made(tmp_path / "sets" / "crepe", "image_caption_selection")
    made(tmp_path / "sets" / "voc", "multilabel", classes=True)
    made(tmp_path / "sets" / "notes")
    made(tmp_path / "food", "classification", classes=True)
    return tmp_path


def groups(suite: object) -> list[str]:
    return [found.group for found in benchmark_sets(suite)]


def test_each_folder_is_what_its_files_say(folder: Path) -> None:
    assert groups(f"{folder}/sets") == [
        *("eval/captions_crepe", "eval/retrieval_flickr", "eval/zeroshot_pets", "eval/multilabel_voc")
    ]
    assert groups(f"{folder}/sets/flickr/") == ["eval/retrieval_flickr"]
    assert groups([f"{folder}/food", f"{folder}/sets/pets"]) == ["eval/zeroshot_food", "eval/zeroshot_pets"]
    assert groups({"a": f"{folder}/food", "b": None, "c": f"{folder}/sets"}) == [
        *("eval/zeroshot_a", "eval/captions_c_crepe", "eval/retrieval_c_flickr", "eval/zeroshot_c_pets", "eval/multilabel_c_voc")
    ]
    assert groups(None) == groups({}) == groups([]) == []
    assert benchmark_sets(f"{folder}/food") == [BenchmarkSet("food", "classification", f"{folder}/food")]


def test_what_is_no_suite_is_one_line(folder: Path) -> None:
    (made(folder / "typo", "retreival"), made(folder / "empty"), made(folder / "other" / "pets", classes=True))
    for suite, told in (
        (f"{folder}/none", "none is not a folder"),
        (
            f"{folder}/empty",
            "has dataset_type.txt or classnames.txt: write one of classification, multilabel, retrieval, ",
        ),
        (f"{folder}/typo", "says 'retreival' (did you mean 'retrieval'?): it must be one of"),
        (3, "eval.suite: 3 is not a folder"),
        ([f"{folder}/sets", f"{folder}/other"], "would both be eval/zeroshot_pets: name them"),
    ):
        with pytest.raises(UserError) as raised:
            benchmark_sets(suite)
        assert str(raised.value).startswith("eval.suite: ") and told in str(raised.value) and "\n" not in str(raised.value)
