"""What is in the shards of an embedded data set."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.data.shards.patterns import list_shards
from trainer.data.shards.samples import Sample, read_samples


def samples(pattern: Path) -> list[Sample]:
    """The samples of all shards of a pattern or folder."""
    return [sample for shard in list_shards(str(pattern), "eval.zeroshot") for sample in read_samples(shard)]


def captions(pattern: Path) -> list[str]:
    """Their captions."""
    return [sample.files["txt"].decode() for sample in samples(pattern)]


def pixels(sample: Sample) -> np.ndarray:
    """A sample's image, uint8 `[h, w, 3]`."""
    return np.asarray(Image.open(io.BytesIO(sample.files["jpg"])))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
