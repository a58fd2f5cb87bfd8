"""Keys that can stand in a shard, and numbers made of keys."""

import hashlib
import re
from typing import NamedTuple

from trainer.data.shards.litter import is_litter

LONGEST = 180  # bytes of a key: the names of its files fit into a tar header's prefix and name
UNSAFE = str.maketrans({".": "_", "\\": "_", "*": "_", "?": "_"})
COUNTED = re.compile(r"__\d+$")
WIDE = 2**64


class Numbers(NamedTuple):
    """What a key amounts to, each from 0 to WIDE - 1. identity: equal for equal keys only; split, order: as if at random."""

    identity: int
    split: int
    order: int


def numbers_of(key: str, seed: int) -> Numbers:
    """The same everywhere and always; only `order` depends on the seed."""
    content = key.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(content, digest_size=16).digest()
    order = hashlib.blake2b(f"{seed} ".encode() + content, digest_size=8).digest()
    return Numbers(int.from_bytes(digest[:8]), int.from_bytes(digest[8:]), int.from_bytes(order))


def safe_key(key: str, repeat: int) -> str:
    """The key if readers of shards take it for what it is, else one as like it as possible with some of its digest.

    A dot would end it (WebDataset's rule), and what looks like litter would be skipped. repeat: 0 for the first sample with this
    key; the others get a number.
    """
    safe = "/".join(part for part in key.split("/") if part not in ("", ".", "..")).translate(UNSAFE)
    safe = "".join(c if c.isprintable() and c != "\ufffd" else "_" for c in safe)
    if COUNTED.search(safe):
        safe += "-"
    if not safe or is_litter(safe) or is_litter(f"{safe}.jpg"):
        safe = f"key-{safe.replace('/', '_')}".rstrip("~#")
    if len(safe.encode()) > LONGEST:
        safe = safe.encode()[-LONGEST:].decode("utf-8", "ignore").lstrip("/")
    if safe != key:
        safe += f"-{hashlib.blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}"
    return f"{safe}__{repeat + 1}" if repeat else safe
