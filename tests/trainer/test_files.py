"""A file is written whole or not at all."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.files import write_whole


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path):
    write_whole(tmp_path / "a", b"one")
    write_whole(tmp_path / "a", (line for line in (b"two\n", b"three\n")))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"two\nthree\n")]


def test_what_fails_on_the_way_leaves_the_file_before(tmp_path: Path):
    def cut() -> Iterator[bytes]:
        yield b"half"
        raise OSError(28, "No space left on device")

    write_whole(tmp_path / "a", b"one")
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a", cut())
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"one")]
