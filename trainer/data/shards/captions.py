"""What is said about an image: captions and labels out of a sample's files."""

import json
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

from trainer.data.shards.images import image_bytes
from trainer.data.shards.samples import Sample, Unusable, read_samples
from trainer.errors import UserError

CHECKED_SAMPLES = 100
CHECKED_SHARDS = 8  # tried for one that holds samples at all
CAPTION_SHARDS = 64  # at most these are opened for a sample of the captions


def captions_of(sample: Sample, caption_key: str | None) -> list[str]:
    """All captions of a sample, stripped, without empty ones; [] when there is none that can be read.

    From `.json[caption_key]`, a string or a list of strings, when the key is set and the sample has a `.json` (evaluation sets
    often have none); else a caption a line from `.txt`; else from `.json["caption"]`.
    """
    if "txt" in sample.files and (caption_key is None or "json" not in sample.files):
        try:
            found: object = sample.files["txt"].decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            return []
    else:
        found = _from_json(sample.files.get("json", b"null"), caption_key or "caption")
    captions = found if isinstance(found, list) else [found]
    return [text for text in (" ".join(caption.split()) for caption in captions if isinstance(caption, str)) if text]


def _from_json(content: bytes, key: str) -> object:
    try:
        values = json.loads(content)
    except ValueError:
        return None
    return values.get(key) if isinstance(values, dict) else None


def label_of(sample: Sample) -> int:
    """The class index in `.cls`, or -1 when there is no such file. Raises Unusable when the file holds no index."""
    content = sample.files.get("cls")
    if content is None:
        return -1
    text = content.decode("ascii", "replace").strip()
    if not text.isdigit():
        raise Unusable(f".cls holds '{text[:20]}', not a class index")
    return int(text)


def require_pair(sample: Sample, caption_key: str | None) -> tuple[bytes, list[str]]:
    """A sample's encoded image and its captions, at least one. Raises Unusable when either is missing."""
    if sample.broken:
        raise Unusable(sample.broken)
    image = image_bytes(sample)
    captions = captions_of(sample, caption_key)
    if not captions:
        raise Unusable("no caption")
    return image, captions


def check_captions(shards: list[str], caption_key: str | None) -> None:
    """Raise UserError when none of the first 100 samples of the first shard (that holds samples) has a caption."""
    for shard in shards[:CHECKED_SHARDS]:
        extensions: set[str] = set()
        with closing(read_samples(shard)) as samples:
            for sample in islice(samples, CHECKED_SAMPLES):
                if captions_of(sample, caption_key):
                    return
                extensions.update(sample.files)
        if extensions:
            raise UserError(_no_captions(shard, extensions, caption_key))
    raise UserError(
        f"no samples in {', '.join(shards[:CHECKED_SHARDS])}: WebDataset shards hold files such as 000.jpg and 000.txt"
    )


def _no_captions(shard: str, extensions: set[str], caption_key: str | None) -> str:
    found = " ".join(f".{extension}" for extension in sorted(extensions))
    if caption_key is None:
        missing, remedy = "no captions", "add .txt files, or set data.caption_key to the caption's key in .json"
    else:
        missing, remedy = f"no captions under data.caption_key={caption_key}", "set the key that .json has, or null for .txt"
    return f"{missing} in shard {shard}: it holds {found}; {remedy}"


def training_captions(shards: list[str], caption_key: str | None, limit: int) -> Iterator[str]:
    """At most `limit` captions, the same ones every time: the first of shards spread evenly over the list."""
    chosen = shards[:: max(1, -(-len(shards) // CAPTION_SHARDS))]
    remaining = limit
    for position, shard in enumerate(chosen):
        # What a short shard leaves unused goes to those after it.
        share = -(-remaining // (len(chosen) - position))
        for caption in islice(_captions(shard, caption_key), share):
            remaining -= 1
            yield caption


def _captions(shard: str, caption_key: str | None) -> Iterator[str]:
    with closing(read_samples(shard)) as samples:
        for sample in samples:
            yield from captions_of(sample, caption_key)
