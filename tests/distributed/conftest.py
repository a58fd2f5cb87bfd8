"""Fixtures of the distributed tests."""

import pytest

from trainer.checkpoint_files import CONFIG, TOKENIZER


@pytest.fixture
def run_dir(tmp_path):
    """A run directory with the files that every checkpoint takes along."""
    (tmp_path / TOKENIZER).write_bytes(b"pieces")
    (tmp_path / CONFIG).write_text("seed: 0\n")
    return tmp_path
