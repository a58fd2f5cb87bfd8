"""A folder of images with their captions beside them, at any depth; img2dataset's `files` output is one."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.data.shards.captions import CaptionRule
from trainer.data.shards.litter import is_litter
from trainer.data.shards.names import IMAGES
from trainer.data.shards.samples import Sample
from trainer.errors import UserError, reason
from trainer.shards.source import Found, read_file
from trainer.shards.unfit import SECOND_IMAGE, UNREADABLE_FILE, Bad

BESIDE = ("txt", "json", "cls", "npy")


class Folder:
    """Its samples: an image and the files beside it that have its name (photo.jpg with photo.txt, or with photo.jpg.txt).

    The key is the path within the folder, without the extension.
    """

    merges = False

    def __init__(self, root: Path, rule: CaptionRule) -> None:
        self.rule = rule
        self.told = f"images in {root}"
        self._root = root

    def find(self) -> Iterator[Found | Bad]:
        """Folder after folder, sorted by name, following links."""
        yield from self._find_in("", frozenset())

    def read(self, places: Sequence[dict[str, str]]) -> Sample:
        """places: of one image, the paths of its files within the folder, by extension."""
        files = {extension: read_file(self._root / path) for extension, path in places[0].items()}
        return Sample(str(self._root / next(iter(places[0].values()))), "", files)

    def _find_in(self, folder: str, above: frozenset[tuple[int, int]]) -> Iterator[Found | Bad]:
        """folder: within the root; above: the folders that it is in, since a link may lead back into one of them."""
        try:
            status = (self._root / folder).stat()
            with os.scandir(self._root / folder) as entries:
                found = sorted((entry for entry in entries if not is_litter(entry.name)), key=lambda entry: entry.name)
                folders = [entry.name for entry in found if entry.is_dir()]
                names = [entry.name for entry in found if not entry.is_dir()]
        except OSError as problem:
            if not folder:
                raise UserError(f"input={self._root}: {reason(problem)}") from None
            yield Bad(folder, UNREADABLE_FILE, reason(problem))
            return
        identity = status.st_dev, status.st_ino
        if identity in above:
            return
        yield from self._images(folder, names)
        for name in folders:
            yield from self._find_in(os.path.join(folder, name), above | {identity})  # noqa: PTH118 - strings, for millions

    def _images(self, folder: str, names: list[str]) -> Iterator[Found | Bad]:
        known = set(names)
        images: dict[str, list[str]] = {}
        for name in names:
            stem, dot, extension = name.rpartition(".")
            if dot and stem and extension.lower() in IMAGES:
                images.setdefault(stem, []).append(name)
        for stem, several in images.items():
            image, *others = sorted(several, key=lambda name: IMAGES.index(name.rpartition(".")[2].lower()))
            for other in others:
                yield Bad(_joined(folder, other), SECOND_IMAGE, f"{image} is used")
            files = {image.rpartition(".")[2].lower(): _joined(folder, image)}
            for extension in BESIDE:
                beside = (f"{stem}.{extension}", f"{stem}.{extension.upper()}", f"{image}.{extension}")
                if found := [name for name in beside if name in known]:
                    files[extension] = _joined(folder, found[0])
            yield Found(_joined(folder, stem), files)


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as an image's does."""
    return name.rpartition(".")[2].lower() in IMAGES


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
