"""The cluster of these tests, started once."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm_lab import SlurmLab, Unavailable

WHY_NOT = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def lab(pytestconfig: pytest.Config) -> Iterator[SlurmLab]:
    """A SLURM with four nodes; tests that ask for it are skipped where none can be."""
    # Not pytest's own folder: the paths of sockets may not be long.
    folder = Path(tempfile.mkdtemp(prefix="lab", dir="/tmp"))
    cluster = SlurmLab(folder)
    try:
        cluster.up()
        yield cluster
    except Unavailable as reason:
        pytestconfig.stash[WHY_NOT] = str(reason)
        pytest.skip(f"no SLURM here: {reason}")
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say once, rather than for each test, why none has run."""
    if WHY_NOT in config.stash:
        terminalreporter.write_line(f"tests/cluster is skipped, for there is no SLURM here: {config.stash[WHY_NOT]}")
