"""What every test gets."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """Undo what a test, or the program in it, sets in the environment: joining the processes sets RANK and its like."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
