"""Which files are one sample."""

from pathlib import Path

import pytest

from tests.trainer.data.shards_on_disk import jpeg
from trainer.data.shards.captions import CaptionRule, require_pair
from trainer.data.shards.keys import MOST_PARTS, group_files
from trainer.data.shards.samples import Sample


def grouped(*names: str) -> list[tuple[str, set[str]]]:
    files = iter([{"fname": name, "data": b"x", "__url__": "shard"} for name in names])
    samples = group_files(files, handler=lambda problem: True)
    return [(sample["__key__"], {name for name in sample if not name.startswith("__")}) for sample in samples]


PAIR = {"jpg", "txt"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "a.txt", "b.JPG", "b.txt"], [("a", PAIR), ("b", PAIR)]),
        (["x.y/a.jpg", "x.y/a.txt"], [("x.y/a", PAIR)]),
        (["p.1.jpg", "p.1.txt", "p.2.jpg", "p.2.txt"], [("p.1", PAIR), ("p.2", PAIR)]),
        (["v1.0_1.png", "v1.0_1.cls", "v1.0_2.png", "v1.0_2.cls"], [("v1.0_1", {"png", "cls"}), ("v1.0_2", {"png", "cls"})]),
        (["p.1.jpg", "p.2.jpg", "p.2.txt", "p.3.jpg", "p.3.txt"], [("p.1", {"jpg"}), ("p.2", PAIR), ("p.3", PAIR)]),
        # WebDataset's extensions of several parts.
        (["a.left.jpg", "a.right.jpg", "a.txt"], [("a", {"left.jpg", "right.jpg", "txt"})]),
        (["a.jpg", "a.seg.png", "a.txt"], [("a", {"jpg", "seg.png", "txt"})]),
        (["a.1.jpg", "a.1.txt", "a.2.jpg", "a.2.txt", "a.txt"], [("a", {"1.jpg", "1.txt", "2.jpg", "2.txt", "txt"})]),
        (["p.1.jpg", "p.1.txt"], [("p", {"1.jpg", "1.txt"})]),
        (["README", "a.jpg", "a.txt"], [("a", PAIR)]),
    ],
)
def test_where_a_key_ends(names: list[str], expected: list[tuple[str, set[str]]]) -> None:
    assert grouped(*names) == expected


def test_many_files_of_one_first_dot_are_not_held_back() -> None:
    taken: list[int] = []

    def files():
        for number in range(10_000):
            taken.append(number)
            yield {"fname": f"p.{number:05}.{('jpg', 'txt')[number % 2]}", "data": b"x", "__url__": "shard"}

    pairs = ({**file, "fname": f"p.{index // 2}.{file['fname'][-3:]}"} for index, file in enumerate(files()))
    first = next(group_files(pairs, handler=lambda problem: True))
    assert first["__key__"] == "p.0"
    assert len(taken) <= MOST_PARTS + 1


def test_one_dotted_pair_is_a_pair(tmp_path: Path) -> None:
    image, captions = require_pair(Sample("shard", "photo", {"1.jpg": jpeg(1), "1.txt": b"a dog"}), CaptionRule())
    assert (image, captions) == (jpeg(1), ["a dog"])
