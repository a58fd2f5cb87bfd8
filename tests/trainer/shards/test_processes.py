"""The command as a process with workers of its own: killed, stopped and continued."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.trainer.data.shards_on_disk import jpeg
from tests.trainer.shards.made import contents, pairs, write
from trainer.distributed.signals import EXIT_STOPPED
from trainer.errors import UserError
from trainer.shards import work

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
GIVEN = ("pairs=6", "val=4", "shuffle=false", "short_side=64", "workers=2")


def start(source: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trainer.shards", str(source), f"output={out}", *GIVEN]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_shards(out: Path, count: int, writer: subprocess.Popen[str]) -> None:
    while writer.poll() is None and len(list(out.glob("*.tar"))) < count:
        time.sleep(0.01)


def children_of(parent: int) -> list[int]:
    """All processes that descend from a process."""
    own = [int(child) for task in Path(f"/proc/{parent}/task").glob("*") for child in (task / "children").read_text().split()]
    return own + [further for child in own for further in children_of(child)]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """60 images, 400 x 300, two of them damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:03}.jpg").write_bytes(b"damaged" if number in (7, 40) else jpeg(number, 400, 300))
        (folder / f"{number:03}.txt").write_text(f"picture {number}")
    return folder


@contextmanager
def stalled(image: Path) -> Iterator[None]:
    """Within the block, whoever reads the image waits for its content."""
    content = image.read_bytes()
    image.unlink()
    os.mkfifo(image)
    yield
    image.unlink()
    image.write_bytes(content)


def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path: Path, source: Path):
    out = tmp_path / "out"
    write(source, f"output={tmp_path / 'whole'}", *GIVEN[:-1])
    for end, shards, image in ((signal.SIGKILL, 4, "033.jpg"), (signal.SIGTERM, 6, "055.jpg")):
        with stalled(source / image), start(source, out) as writer:
            wait_for_shards(out, shards, writer)
            children = children_of(writer.pid)
            writer.send_signal(end)
            _, problems = writer.communicate()
        if end == signal.SIGTERM:
            assert (writer.returncode, problems) == (EXIT_STOPPED, "stopped: the same command goes on where this one was\n")
        while any(map(is_alive, children)):  # its workers end with it, also those that wait
            time.sleep(0.05)
        assert not (out / "shards.json").exists()
    with start(source, out) as writer:
        said, problems = writer.communicate()
    assert writer.returncode == 0, problems
    assert "going on after" in said
    assert contents(out) == contents(tmp_path / "whole")


def test_a_killed_worker_is_one_line_and_the_same_command_goes_on(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(work, "_Share", KilledInTheMiddle)
        with pytest.raises(UserError, match=r"a data worker was killed, .*: use fewer workers=; the same command goes on"):
            write(source, f"output={out}", *GIVEN[:-1], workers=2)
    assert list(out.glob("*.tar"))
    write(source, f"output={out}", *GIVEN[:-1])
    assert len(pairs(out) + pairs(out, "val")) == 58


class KilledInTheMiddle(work._Share):
    """Ends its process in its third portion."""

    def __call__(self, worker: int):
        for number, outcomes in enumerate(super().__call__(worker)):
            if len(self.numbers) > 10 and number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield outcomes
