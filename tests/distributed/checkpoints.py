"""Looking into checkpoints from one plain process, without the program's own reader."""

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata


def tensors_in(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, whole."""
    reader = FileSystemReader(checkpoint / "state")
    state: dict[str, Any] = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        state[name] = torch.full(tuple(entry.size), torch.nan, dtype=entry.properties.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process, which is wanted
        dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def files_in(checkpoint: Path) -> dict[str, bytes]:
    """Every file of a checkpoint by its path in it."""
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
