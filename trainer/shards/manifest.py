"""What is left beside the shards: how many pairs each has, what they were made of, what was left out."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import UserError, reason
from trainer.files import write_whole
from trainer.shards.record import Records, kinds_of
from trainer.shards.unfit import Bad

MANIFEST = "shards.json"
"""Settings, totals, and pairs, captions and bytes of each shard. The last file that is put in place."""
SIZES = "sizes.json"
"""Pairs of each shard, as open_clip reads them."""
BAD = "bad.jsonl"
"""Key, kind and reason of each sample that was left out."""


@dataclass
class Part:
    """Shards by name, and sums over them. several: samples with more than one caption; resized: images made smaller."""

    shards: list[str] = field(default_factory=list)
    pairs: int = 0
    captions: int = 0
    several: int = 0
    resized: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Finished:
    """What a complete folder was made with, what it contains, by part, and how many samples of each kind were left out."""

    settings: dict[str, Any]
    parts: dict[str, Part]
    bad: Counter[str] = field(default_factory=Counter)


def is_finished(folder: Path) -> bool:
    """Whether a folder has all its shards."""
    return (folder / MANIFEST).is_file()


def write_manifest(folder: Path, settings: Mapping[str, Any], records: Records, left_out: Sequence[Bad]) -> None:
    """Leave the lists of what there is. Raises OSError."""
    bad = [*left_out, *records.bad]
    if bad:
        write_whole(folder / BAD, (json.dumps(entry._asdict()).encode() + b"\n" for entry in bad))
    shards = {record.shard: record for record in records if record.shard is not None}
    write_whole(folder / SIZES, pretty({name: record.pairs for name, record in shards.items()}))
    parts: dict[str, Part] = {}
    for name, record in shards.items():
        part = parts.setdefault(record.part, Part())
        part.shards.append(name)
        for sum_of in ("pairs", "captions", "several", "resized", "bytes"):
            setattr(part, sum_of, getattr(part, sum_of) + getattr(record, sum_of))
    sizes = {name: {"pairs": each.pairs, "captions": each.captions, "bytes": each.bytes} for name, each in shards.items()}
    described = {name: asdict(part) | {"shards": len(part.shards)} for name, part in parts.items()}
    left = dict(kinds_of(bad).most_common())
    write_whole(folder / MANIFEST, pretty({"settings": settings, "parts": described, "left_out": left, "shards": sizes}))


def read_finished(folder: Path) -> Finished:
    """What a complete folder contains. Raises UserError if its manifest is damaged, or another program's."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        names = list(manifest["shards"])
        parts = {}
        for name, part in manifest["parts"].items():
            count = part["shards"]
            parts[name] = Part(**part | {"shards": names[:count]})
            names = names[count:]
        return Finished(dict(manifest["settings"]), parts, Counter(manifest["left_out"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        told = f"{folder / MANIFEST} is not what trainer.shards writes ({reason(problem)})"
        raise UserError(f"{told}: choose another output") from None


def pretty(values: Mapping[str, Any]) -> bytes:
    """JSON for people."""
    return json.dumps(values, indent=1).encode() + b"\n"
