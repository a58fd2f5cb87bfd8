"""The captions and labels in a sample's files."""

import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from model.text import clean_text
from trainer.config.schema import DataConfig
from trainer.data.shards.images import image_bytes, shorter_side
from trainer.data.shards.names import DOTS_REMEDY, file_named
from trainer.data.shards.opening import Remote
from trainer.data.shards.remote.path import Place, RemotePath, is_listed
from trainer.data.shards.remote.persistent import ReadFailed
from trainer.data.shards.remote.secret import address_of
from trainer.data.shards.samples import Sample, Unusable, read_samples
from trainer.data.text_files import decode_text, split_lines
from trainer.errors import UserError, reason

CHECKED_SAMPLES = 100
CHECKED_SHARDS = 8  # tried until one contains samples
CAPTION_SHARDS = 64  # at most these are opened for a sample of the captions
CLASS_DIGITS = 9  # more would not fit into the label's integer
SHOWN_KEYS = 5
SHOWN_OF_KEY = 40  # characters
TEXT_KEY = "txt"  # among the keys of a named source, the file
CAPTIONS_REMEDY = "captions of a source names keys of .json, or txt"
CLIP_BENCHMARK = "nshards.txt"  # next to the shards in CLIP_benchmark's layout


class Labels:
    """Captions from class names: of class c all templates, each with the class's name for `{c}`."""

    def __init__(self, classes: Sequence[str], templates: Sequence[str]) -> None:
        self.classes = list(classes)
        self.templates = list(templates)
        self._made: dict[int, tuple[str, ...]] = {}

    def captions(self, label: int) -> tuple[str, ...]:
        """Those of a class; the same object every time. Raises NoCaption for a class without a name."""
        if label >= len(self.classes):
            raise NoCaption(f"its .cls is {label}, but there are {len(self.classes)} class names, from 0")
        if label not in self._made:
            # Not str.format: a template may contain other braces.
            self._made[label] = tuple(template.replace("{c}", self.classes[label]) for template in self.templates)
        return self._made[label]


@dataclass(frozen=True)
class CaptionRule:
    """Where a sample's captions are, and which samples are left out as too small.

    key: `data.caption_key`; lines: `data.caption_lines`. Of a named source: chances, keys of .json (or txt) with the
    probabilities of their captions; labels, which captions are made from; min_side: pixels of the shorter side; min_length:
    characters of a caption.
    """

    key: str | None = None
    lines: bool | None = None
    chances: tuple[tuple[str, float], ...] = ()
    labels: Labels | None = None
    min_side: int = 0
    min_length: int = 0

    @classmethod
    def of(cls, data: DataConfig) -> "CaptionRule":
        """The rule that a configuration gives."""
        return cls(data.caption_key, data.caption_lines)

    def splits(self, shard: str) -> bool:
        """Whether each line of a `.txt` in this shard is a separate caption."""
        if self.lines is not None:
            return self.lines
        return _is_counted(RemotePath(address_of(shard)).parent if is_listed(shard) else Path(shard).parent)


@lru_cache
def _is_counted(folder: Place) -> bool:
    """Whether a folder has CLIP_benchmark's layout. Raises UserError when a store does not say: a guess would be learned."""
    try:
        return (folder / CLIP_BENCHMARK).is_file()
    except ReadFailed as problem:
        raise UserError(f"{problem}: whether a line of a .txt is a caption depends on it; set data.caption_lines") from None
    except (OSError, ValueError):  # of a command or a URL, whose "folder" may be no path at all
        return False


class NoCaption(Unusable):
    """A sample without a readable caption; `remedy` says what would help if all samples are like this."""

    def __init__(self, found: str, remedy: str = "") -> None:
        super().__init__(found)
        self.remedy = remedy


class TooSmall(Unusable):
    """A sample that a source leaves out on purpose: its image or its captions are smaller than asked for."""


def read_captions(sample: Sample, rule: CaptionRule) -> list[str]:
    """All captions of a sample, at least one, each cleaned (model.text). Raises NoCaption, which says what was found instead.

    From the keys or the labels of a named source, where the rule has some.

    From `.json[rule.key]`, a string or a list of strings, when the key is set and the sample has a `.json` (evaluation sets
    often have none); else from `.txt`; else from `.json["caption"]`. A `.txt` is one caption, with line breaks as spaces,
    unless the rule makes each line a caption.
    """
    if rule.chances or rule.labels:
        return list(_with_chances(sample, rule)[0])
    text, values = file_named(sample.files, "txt"), file_named(sample.files, "json")
    if text is not None and (rule.key is None or values is None):
        return _from_text(text, rule.splits(sample.shard))
    if values is not None:
        return _from_json(values, rule.key)
    found = " ".join(f".{extension}" for extension in sorted(sample.files)) or "nothing"
    if any("." in extension for extension in sample.files):
        raise NoCaption(f"no caption: it contains {found}", DOTS_REMEDY)
    raise NoCaption(f"no caption: it contains {found}", "add .txt files, or set data.caption_key to the caption's key in .json")


def _with_chances(sample: Sample, rule: CaptionRule) -> tuple[Sequence[str], list[float] | None]:
    """The captions, and the probability of each to be drawn, in proportion; None: all the same."""
    if rule.labels:
        label = label_of(sample)
        if label < 0:
            raise NoCaption("it has no .cls with its class index", "leave out classes to read captions")
        return rule.labels.captions(label), None
    if not rule.chances:
        return read_captions(sample, rule), None
    captions: list[str] = []
    chances: list[float] = []
    problem: NoCaption | None = None
    for key, chance in rule.chances:
        try:
            found = _of_key(sample, key, rule)
        except NoCaption as missing:
            problem = problem or missing
            continue
        captions += found
        chances += [chance / len(found)] * len(found)
    if not captions:
        assert problem is not None  # a rule has one key at least
        raise problem
    return captions, chances if len(rule.chances) > 1 else None


def _of_key(sample: Sample, key: str, rule: CaptionRule) -> list[str]:
    """The captions under one key of a named source."""
    text, values = file_named(sample.files, "txt"), file_named(sample.files, "json")
    if key == TEXT_KEY and text is not None:
        return _from_text(text, rule.splits(sample.shard))
    if values is None:
        found = " ".join(f".{extension}" for extension in sorted(sample.files)) or "nothing"
        raise NoCaption(f"no {f'.{TEXT_KEY}' if key == TEXT_KEY else '.json'}: it contains {found}", CAPTIONS_REMEDY)
    return _from_json(values, key, CAPTIONS_REMEDY)


def captions_of(sample: Sample, rule: CaptionRule) -> list[str]:
    """`read_captions`, or [] if there are none."""
    try:
        return read_captions(sample, rule)
    except NoCaption:
        return []


def _from_text(content: bytes, lines: bool) -> list[str]:
    try:
        text = decode_text(content)
    except UserError as problem:
        raise NoCaption(f"its .txt {problem}") from None
    captions = _cleaned(split_lines(text) if lines else [text])
    if not captions:
        raise NoCaption(f"its .txt {'contains no visible characters' if content.strip() else 'is empty'}")
    return captions


def _from_json(content: bytes, key: str | None, remedy: str = "") -> list[str]:
    remedy = remedy or (
        "set data.caption_key to a key of .json, or to null for .txt"
        if key
        else "set data.caption_key to the caption's key in .json"
    )
    try:
        # The numbers are not ours: Python refuses integers of more than 4,300 digits.
        values: Any = json.loads(content, parse_int=float)
    except RecursionError:
        raise NoCaption("its .json is nested too deeply") from None
    except ValueError as problem:
        raise NoCaption(f"its .json is not JSON ({problem})") from None
    if not isinstance(values, dict):
        raise NoCaption(f"its .json is {_kind(values)}, not an object", 'write {"caption": "what it shows"} there, or .txt files')
    name = key or "caption"
    if name not in values:
        keys = ", ".join(repr(clean_text(known)[:SHOWN_OF_KEY]) for known in islice(values, SHOWN_KEYS)) or "none"
        raise NoCaption(f"its .json has no '{name}' (its keys: {keys})", remedy)
    found = values[name]
    captions = _cleaned(found if isinstance(found, list) else [found])
    if not captions:
        empty = isinstance(found, list | str)
        if isinstance(found, dict):
            remedy = "data.caption_key names a text or a list of texts, not one within an object"
        raise NoCaption(f"'{name}' of its .json {'has no text' if empty else f'is {_kind(found)}, not text'}", remedy)
    return captions


def _cleaned(captions: list[Any]) -> list[str]:
    return [text for text in (clean_text(caption) for caption in captions if isinstance(caption, str)) if text]


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", float: "a number"}
    return kinds[type(value)]


def label_of(sample: Sample) -> int:
    """The class index in `.cls`, or -1 if there is no such file. Raises Unusable when the file has no index."""
    content = file_named(sample.files, "cls")
    if content is None:
        return -1
    text = content[:100].decode("ascii", "replace").strip()
    if not text.isdigit() or len(text) > CLASS_DIGITS:
        raise Unusable(f".cls contains '{clean_text(text)[:20]}', which is not a class index")
    return int(text)


def classes_of(sample: Sample) -> list[int] | None:
    """The classes that apply, from a `.npy` with a number per class (above 0: it applies), or None if there is no such file.

    Raises Unusable when the file has no such numbers.
    """
    content = file_named(sample.files, "npy")
    if content is None:
        return None
    try:
        applies_c = np.load(io.BytesIO(content), allow_pickle=False) > 0
    except (ValueError, TypeError, EOFError, OSError, MemoryError) as problem:
        raise Unusable(f".npy cannot be read as a number for each class: {reason(problem)}") from None
    if applies_c.ndim != 1:
        raise Unusable(f".npy has the shape {applies_c.shape}, instead of one number for each class")
    return [int(number) for number in np.flatnonzero(applies_c)]


def require_pair(sample: Sample, rule: CaptionRule) -> tuple[bytes, Sequence[str], list[float] | None]:
    """A sample's encoded image, its captions, at least one, and the probability of each in proportion (None: all the same).

    Raises Unusable when image or captions are missing, and TooSmall when they are smaller than the rule asks for.
    """
    if sample.broken:
        raise Unusable(sample.broken)
    image = image_bytes(sample)
    captions, chances = _with_chances(sample, rule)
    if rule.min_length:
        captions, chances = _long_enough(captions, chances, rule.min_length)
    if rule.min_side and (side := shorter_side(image)) is not None and side < rule.min_side:
        raise TooSmall(f"its image has {side} pixels on the shorter side, fewer than min_side={rule.min_side}")
    return image, captions, chances


def _long_enough(
    captions: Sequence[str], chances: list[float] | None, characters: int
) -> tuple[Sequence[str], list[float] | None]:
    kept = [index for index, caption in enumerate(captions) if len(caption) >= characters]
    if not kept:
        raise TooSmall(f"its caption '{captions[0][:SHOWN_OF_KEY]}' has fewer characters than min_length={characters}")
    if len(kept) == len(captions):
        return captions, chances
    return [captions[index] for index in kept], None if chances is None else [chances[index] for index in kept]


def check_captions(shards: list[str], rule: CaptionRule, remote: Remote | None = None) -> None:
    """Raise UserError when none of the first 100 samples of the first shard (that holds samples) has a caption."""
    for shard in shards[:CHECKED_SHARDS]:
        extensions: set[str] = set()
        reasons: Counter[tuple[str, str]] = Counter()
        with closing(read_samples(shard, remote)) as samples:
            for sample in islice(samples, CHECKED_SAMPLES):
                extensions.update(sample.files)
                try:
                    read_captions(sample, rule)
                    return
                except NoCaption as problem:
                    reasons[str(problem), problem.remedy] += bool(sample.files)
        if extensions:
            raise UserError(_no_captions(shard, extensions, reasons, rule, remote))
    raise UserError(
        f"no samples in {', '.join(shards[:CHECKED_SHARDS])}: WebDataset shards contain files such as 000.jpg and 000.txt"
    )


def has_key(shards: Sequence[str], key: str, rule: CaptionRule, remote: Remote | None = None) -> bool:
    """Whether any of the first 100 samples of some shards has captions under a key of a named source."""
    for shard in shards:
        with closing(read_samples(shard, remote)) as samples:
            for sample in islice(samples, CHECKED_SAMPLES):
                try:
                    _of_key(sample, key, rule)
                    return True
                except NoCaption:
                    continue
    return False


def _no_captions(
    shard: str, extensions: set[str], reasons: Counter[tuple[str, str]], rule: CaptionRule, remote: Remote | None
) -> str:
    found = " ".join(f".{extension}" for extension in sorted(extensions)[:10])
    missing = f"no captions in shard {shard}" if rule.key is None else f"no captions under data.caption_key={rule.key}"
    where = "" if rule.key is None else f" in shard {shard}"
    scattered = _scattered_key(shard, remote)
    if scattered:
        return (
            f"{missing}{where}: it contains {found}, but the files of a sample, such as {scattered}, are not next to each other: "
            f"write the shard again, sorted by name (tar --sort=name)"
        )
    (reason, remedy), _ = reasons.most_common(1)[0]
    told = "" if reason.startswith("no caption:") else f"; usually, {reason}"
    return f"{missing}{where}: it contains {found}{told}{f'; {remedy}' if remedy else ''}"


def _scattered_key(shard: str, remote: Remote | None) -> str:
    """A key that appears again in a shard after another key; "" if there is none."""
    seen: set[str] = set()
    with closing(read_samples(shard, remote)) as samples:
        for sample in samples:
            if sample.key in seen:
                return sample.key
            seen.add(sample.key)
    return ""


def training_captions(shards: list[str], rule: CaptionRule, limit: int, remote: Remote | None = None) -> Iterator[str]:
    """At most `limit` captions, the same ones every time: the first of shards spread evenly over the list.

    Captions from labels are not counted but taken in turn, all classes before the second template.
    """
    if rule.labels:
        yield from islice(cycle(_of_all_classes(rule.labels)), limit)
        return
    chosen = shards[:: max(1, -(-len(shards) // CAPTION_SHARDS))]
    remaining = limit
    for position, shard in enumerate(chosen):
        # The unused part of a short shard's quota goes to the shards after it.
        share = -(-remaining // (len(chosen) - position))
        for caption in islice(_captions(shard, rule, remote), share):
            remaining -= 1
            yield caption


def _of_all_classes(labels: Labels) -> Iterator[str]:
    return (template.replace("{c}", name) for template in labels.templates for name in labels.classes)


def _captions(shard: str, rule: CaptionRule, remote: Remote | None) -> Iterator[str]:
    with closing(read_samples(shard, remote)) as samples:
        for sample in samples:
            yield from captions_of(sample, rule)
