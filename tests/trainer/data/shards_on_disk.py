"""Small shards for the tests: each image has a colour of its own, its caption names it."""

import io
import random
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image

from trainer.data.tokenizer import Tokenizer, train_tokenizer


def jpeg(number: int, width: int = 24, height: int = 20) -> bytes:
    image = Image.new("RGB", (width, height), (number * 37 % 256, number * 91 % 256, number * 17 % 256))
    noise = random.Random(number)
    for _ in range(30):
        image.putpixel((noise.randrange(width), noise.randrange(height)), (noise.randrange(256), 0, noise.randrange(256)))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=95)
    return encoded.getvalue()


def write_shard(path: Path, samples: list[dict[str, Any]]) -> str:
    """A shard of samples without `__key__`, which become 000000, 000001, …"""
    with webdataset.TarWriter(str(path), mtime=0) as writer:
        for index, sample in enumerate(samples):
            writer.write({"__key__": f"{index:06}", **sample})
    return str(path)


def pair(number: int) -> dict[str, Any]:
    return {"jpg": jpeg(number), "txt": f"picture number {number} of a small set"}


def write_shards(folder: Path, shards: int, each: int) -> list[str]:
    """`shards` shards of `each` pairs, all different."""
    return [
        write_shard(folder / f"train-{shard:03}.tar", [pair(shard * each + index) for index in range(each)])
        for shard in range(shards)
    ]


def small_tokenizer(folder: Path) -> Tokenizer:
    return train_tokenizer([f"picture number {number} of a small set" for number in range(300)], folder / "t.model", 200)
