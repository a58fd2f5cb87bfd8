"""Fixtures of the distributed tests."""

import socket

import pytest

from trainer.checkpoint.files import CONFIG, TOKENIZER


@pytest.fixture
def run_dir(tmp_path):
    """A run directory with the files that every checkpoint takes along."""
    (tmp_path / TOKENIZER).write_bytes(b"pieces")
    (tmp_path / CONFIG).write_text("seed: 0\n")
    return tmp_path


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
