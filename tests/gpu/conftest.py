"""A GPU, or nothing here runs; LIMOE_TEST_DEVICE=cpu rehearses what does not ask the GPU itself."""

import os
from pathlib import Path

import pytest
import torch

from tests.distributed.device import like_new_torch

HERE = Path(__file__).parent
REHEARSED = os.environ.get("LIMOE_TEST_DEVICE") == "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip these tests without a GPU."""
    like_new_torch()
    if torch.cuda.is_available() or REHEARSED:
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def device() -> torch.device:
    """Where the test computes."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
