"""Writing a checkpoint touches no GPU, even where there is one: the state is on the CPU by then."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter, filesystem

from trainer.checkpoint.save import _Writer


@pytest.fixture
def cuda_is_there(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make torch believe that it has CUDA; what then asks for a stream is noted, since that would make a context on GPU 0."""
    asked: list[str] = []

    class Touched(Exception):
        pass

    def touch(*args: object, **kwargs: object) -> None:
        asked.append("stream")
        raise Touched

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", touch)
    monkeypatch.setattr(filesystem, "_get_available_device_type", lambda: "cuda")
    return asked


def test_our_writer_asks_for_no_stream(cuda_is_there: list[str], tmp_path: Path):
    writer = _Writer(tmp_path / "ours")
    dcp.save({"weight": torch.arange(6.0)}, storage_writer=writer, no_dist=True)
    assert cuda_is_there == []
    assert list((tmp_path / "ours").glob("*.distcp"))


def test_torch_s_default_would(cuda_is_there: list[str], tmp_path: Path):
    with pytest.raises(BaseException):  # noqa: B017  # however torch wraps it
        dcp.save({"weight": torch.arange(6.0)}, storage_writer=FileSystemWriter(tmp_path / "default"), no_dist=True)
    assert cuda_is_there
