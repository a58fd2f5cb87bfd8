"""A reader of standard output that leaves early, as `head` does."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def without_reader(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A Python program whose standard output nobody reads."""
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as gone:
        assert gone.stdin is not None
        gone.wait()
        return subprocess.run([sys.executable, *arguments], cwd=cwd, stdout=gone.stdin, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "trainer.train", "--help"],
        ["-m", "trainer.train", "--cfg", "job"],
        ["-m", "trainer.describe"],
        ["-m", "trainer.describe", "-h"],
        ["-m", "trainer.export", "--help"],
    ],
    ids=" ".join,
)
def test_what_is_told_to_nobody_ends_well(arguments: list[str]):
    done = without_reader(*arguments)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "accelerator" not in line]) == (0, [])


def test_a_table_that_nobody_reads_does_not_end_what_prints_it():
    program = (
        "import sys\n"
        "from trainer.reporting.bar import print_line\n"
        "from trainer.reporting.tables import facts_table, summary_table\n"
        "for _ in range(3):\n"
        "    facts_table([('a', 'b' * 9999)])\n"
        "    summary_table('x', [('a', 'b', '')], [('c', 'd')])\n"
        "    print_line('e')\n"
        "print('went on', file=sys.stderr)"
    )
    done = without_reader("-c", program)
    assert (done.returncode, done.stderr) == (0, "went on\n")
