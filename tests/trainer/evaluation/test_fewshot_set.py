from pathlib import Path

import pytest

from tests.trainer.data.shards_on_disk import pair, write_shard
from trainer.errors import UserError
from trainer.evaluation.fewshot_set import fewshot_sets, key_of, read_fewshot_set


def shards(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_shard(folder / name, [pair(0)])
        if "/" in name:
            (folder / name).with_name("nshards.txt").write_text("1\n")
    return folder


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (("train/0.tar", "test/0.tar"), ""),
        (("train/0.tar", "val/0.tar"), ""),
        (("train-0.tar", "test-0.tar"), ""),
        (("train-0.tar", "test-0.tar", "val-0.tar"), "/*.tar"),
        (("train-0.tar", "test-0.tar"), "/{train,test}-0.tar"),
        (("train-0.tar", "test-0.tar"), "/{train,test}-*.tar"),
        (("train/0.tar", "test/0.tar"), "/{train,test}/0.tar"),
        (("train/0.tar", "test/0.tar"), "/{train,test}"),
    ],
)
def test_both_parts_of_the_layouts_we_read(
    tmp_path: Path, names: tuple[str, ...], pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shards(tmp_path, *names)
    found = read_fewshot_set(f"{folder}{pattern}", "eval.fewshot")
    assert ([*found.train], [*found.test]) == ([f"{folder}/{names[0]}"], [f"{folder}/{names[1]}"])
    assert not caplog.records, "nothing is left out"


def test_parts_that_are_named(tmp_path: Path) -> None:
    folder = shards(tmp_path, "a/0.tar", "b/0.tar")
    found = read_fewshot_set({"train": f"{folder}/a", "test": [f"{folder}/b/0.tar"]}, "eval.fewshot")
    assert (found.train, found.test) == ([f"{folder}/a/0.tar"], [f"{folder}/b/0.tar"])


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ("DIR/tested", ("eval.fewshot=DIR/tested: no shards match", "the training part", "{train: PATTERN, test: PATTERN}")),
        ("DIR/trained", ("no shards match", "the test part", "{train: PATTERN, test: PATTERN}")),
        ("DIR/none", ("DIR/none", "not exist")),
        ("DIR/*.tar", ("the shards' names do not say which are for training", "give {train: PATTERN, test: PATTERN}")),
        (
            {"train": "DIR/x-0.tar", "test": "DIR/*.tar"},
            ("1 of 2 test shards are training shards of the probe too (DIR/x-",),
        ),
        ({"train": "DIR/none.tar", "test": "DIR/*.tar"}, ("eval.fewshot.train", "none.tar")),
    ],
)
def test_parts_that_are_not_there(tmp_path: Path, place: object, parts: tuple[str, ...]) -> None:
    shards(tmp_path, "x-0.tar", "x-1.tar", "tested/test/0.tar", "trained/train/0.tar")

    def here(value: object) -> object:
        if isinstance(value, dict):
            return {name: here(pattern) for name, pattern in value.items()}
        return str(value).replace("DIR", str(tmp_path))

    with pytest.raises(UserError) as raised:
        read_fewshot_set(here(place), "eval.fewshot")
    assert "\n" not in str(raised.value)
    assert all(str(here(part)) in str(raised.value) for part in parts), raised.value


def test_one_set_or_several() -> None:
    both = {"train": "/x", "test": "/y"}
    assert fewshot_sets(None) == fewshot_sets({}) == {}
    assert fewshot_sets("/x") == {"default": "/x"}
    assert fewshot_sets(["/x", "/y"]) == {"default": ["/x", "/y"]}
    assert fewshot_sets(both) == {"default": both}
    assert fewshot_sets({"cifar": "/x", "pets": both, "food": None}) == {"cifar": "/x", "pets": both}
    assert (key_of("default"), key_of("pets")) == ("eval.fewshot", "eval.fewshot.pets")


@pytest.mark.parametrize("wrong", [3, True, {"train": "/x"}, {"cifar": {"test": "/x"}}, {"cifar": {"a": "/x"}}, {"cifar": 3}])
def test_what_names_no_set(wrong: object) -> None:
    with pytest.raises(UserError, match=r"^eval\.fewshot.*give a folder with training and test shards"):
        fewshot_sets(wrong)
