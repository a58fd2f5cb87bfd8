"""Which files of a shard are one sample. WebDataset ends the key at the first dot; names with more dots are read right."""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

from webdataset.tariterators import base_plus_ext, group_by_keys

IMAGES: tuple[str, ...] = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "jpe", "jfif", "j2k", "jpx")
IMAGES += ("ppm", "pgm", "pbm", "pnm", "ico", "qoi", "dib")
WORDS = ("txt", "json", "cls")
MOST_PARTS = 32  # files of one key that are held back to look for more dots in it; no sample has so many parts
DOTS_REMEDY = "the first dot of a name ends its key (WebDataset's rule): rename the files without other dots"

File = dict[str, Any]
Named = tuple[str, str, File]
"""Key and extension by WebDataset's rule, and the file."""


def file_named(files: Mapping[str, bytes], extension: str) -> bytes | None:
    """The file with this extension, or the only one whose extension ends so: `1.txt`, of photo.1.txt. None without one."""
    if extension in files:
        return files[extension]
    ending = [content for name, content in files.items() if name.endswith(f".{extension}")]
    return ending[0] if len(ending) == 1 else None


def group_files(files: Iterator[File], handler: Callable[[Exception], bool]) -> Iterator[File]:
    """webdataset's group_by_keys, which the files of photo.1.jpg, photo.1.txt, photo.2.jpg … would be one sample for.

    Where every file of a key has a dotted extension, and cut at the last dot they are several samples with an image and
    words each, the key ends at the last dot. Elsewhere, as in 000.left.jpg beside 000.txt, WebDataset's rule holds.
    """
    return group_by_keys(_keyed(files), keys=_key_and_extension, handler=handler)


def _key_and_extension(keyed: str) -> tuple[str, str]:
    key, _, extension = keyed.rpartition("\0")
    return key, extension


def _keyed(files: Iterator[File]) -> Iterator[File]:
    """The files with their key and extension, a NUL between them, for a name. Those without an extension are left out."""
    named = ((*base_plus_ext(file["fname"]), file) for file in files)
    for key, of_key in groupby((item for item in named if item[0] is not None), itemgetter(0)):
        rest = iter(of_key)
        held = _held_back(rest)
        dotted = _is_several(extension for _, extension, _ in held)
        for _, extension, file in chain(held, rest):
            yield _renamed(file, key, extension, dotted)


def _held_back(of_key: Iterator[Named]) -> list[Named]:
    """The first files of a key: to one whose extension has no dot, to the last, or to so many that there is no doubt."""
    held: list[Named] = []
    for item in of_key:
        held.append(item)
        if "." not in item[1] or len(held) > MOST_PARTS:
            break
    return held


def _is_several(extensions: Iterator[str]) -> bool:
    parts: dict[str, set[str]] = {}
    for extension in extensions:
        part, dot, last = extension.lower().rpartition(".")
        if not dot:
            return False
        parts.setdefault(part, set()).add(last)
    return sum(not last.isdisjoint(IMAGES) and not last.isdisjoint(WORDS) for last in parts.values()) > 1


def _renamed(file: File, key: str, extension: str, dotted: bool) -> File:
    part, dot, last = extension.rpartition(".")
    name = f"{key}.{part}\0{last}" if dotted and dot else f"{key}\0{extension}"
    return {**file, "fname": name}
