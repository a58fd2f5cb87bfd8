"""The packages of `make stores`, beside our own."""

import importlib.util
import os
import site
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STORES = ROOT / ".stores-venv"
needs_stores = pytest.mark.skipif(not (STORES / ".ready").exists(), reason="needs s3fs and a server to read from: make stores")


def add_stores() -> None:
    """Make the packages importable here, and in processes that start from here; our own come first."""
    if importlib.util.find_spec("s3fs") is None:
        (packages,) = STORES.glob("lib/python*/site-packages")
        site.addsitedir(os.fspath(packages))
