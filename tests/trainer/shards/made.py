"""Small inputs for trainer.shards, and what it made of them."""

import hashlib
from pathlib import Path

from tests.trainer.data.shards_on_disk import jpeg
from trainer.data.shards.captions import CaptionRule, read_captions
from trainer.data.shards.images import decode_image, image_bytes
from trainer.data.shards.samples import Sample, read_samples
from trainer.shards.__main__ import write_shards
from trainer.shards.request import read_arguments


def photos(folder: Path, count: int) -> Path:
    """A folder of `count` images, 24 x 20, in two folders of it, each with its caption beside it."""
    for number in range(count):
        place = folder / ("beach" if number % 2 else "city") / f"photo{number:03}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_suffix(".jpg").write_bytes(jpeg(number))
        place.with_suffix(".txt").write_text(f"picture number {number}\n")
    return folder


def write(*arguments: object, workers: int = 0) -> list[str]:
    """What the command says after it wrote, without its last line, the command for training."""
    return write_shards(read_arguments([*map(str, arguments), f"workers={workers}"]))


def samples(folder: Path, part: str = "train") -> list[Sample]:
    """The samples of a part, shard by shard."""
    read = [sample for shard in sorted(folder.glob(f"*{part}-*.tar")) for sample in read_samples(str(shard))]
    assert not [sample.broken for sample in read if sample.broken]
    return read


def pairs(folder: Path, part: str = "train", rule: CaptionRule | None = None) -> list[tuple[str, tuple[int, int], list[str]]]:
    """Key, width and height, and captions, as training reads them."""
    rule = rule or CaptionRule(lines=True)
    return [(each.key, decode_image(image_bytes(each)).size, read_captions(each, rule)) for each in samples(folder, part)]


def contents(folder: Path) -> dict[str, str]:
    """What every file of a folder contains, as a digest."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
