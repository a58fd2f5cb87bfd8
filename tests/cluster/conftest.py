"""The cluster of these tests, started once."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm_lab import SlurmLab, Unavailable


@pytest.fixture(scope="session")
def lab() -> Iterator[SlurmLab]:
    """A SLURM with four nodes; tests that ask for it are skipped where none can be."""
    # Not pytest's own folder: the paths of sockets may not be long.
    folder = Path(tempfile.mkdtemp(prefix="lab", dir="/tmp"))
    cluster = SlurmLab(folder)
    try:
        cluster.up()
    except Unavailable as reason:
        cluster.down()
        pytest.skip(f"no SLURM here: {reason}")
    yield cluster
    cluster.down()
    shutil.rmtree(folder, ignore_errors=True)
