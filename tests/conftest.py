"""What every test gets."""

import contextlib
import logging
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


@pytest.fixture(autouse=True)
def log_handlers_as_they_were() -> Iterator[None]:
    """Undo what a test, or the program in it, does to the root logger."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        with contextlib.suppress(OSError):  # what a full disk did not take
            handler.close()
    root.handlers, root.level = handlers, level
