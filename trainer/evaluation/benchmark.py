"""Folders in CLIP_benchmark's layout, each evaluated as its own files ask."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.data.shards.remote.path import Place, named, place_of
from trainer.data.text_files import decode_text
from trainer.errors import UserError, did_you_mean, reason
from trainer.evaluation.classification_set import CLASSES

TYPE = "dataset_type.txt"
CLASSIFICATION, MULTILABEL, RETRIEVAL, SELECTION = "classification", "multilabel", "retrieval", "image_caption_selection"
WINOGROUND = "winoground"  # the one that CLIP_benchmark has no shards of
KINDS = {
    CLASSIFICATION: "zeroshot",
    MULTILABEL: "multilabel",
    RETRIEVAL: "retrieval",
    SELECTION: "captions",
    WINOGROUND: "winoground",
}
"""What TYPE may say, and the beginning of the metrics' group; without it, a folder with class names is a classification set."""


@dataclass(frozen=True)
class BenchmarkSet:
    """name: in the metrics; kind: one of KINDS; folder: with the set's own files and a folder of test shards."""

    name: str
    kind: str
    folder: str

    @property
    def what(self) -> str:
        """The configuration key, for messages."""
        return f"eval.suite ({self.name})"

    @property
    def group(self) -> str:
        """`eval/zeroshot_pets`, where the metrics are."""
        return f"eval/{KINDS[self.kind]}_{self.name}"


def benchmark_sets(suite: Any) -> list[BenchmarkSet]:
    """The sets of `eval.suite`: null, a folder, a list of folders, or {name: folder}.

    A folder is a set, or has sets in it, which are called like their folders. Raises UserError for a folder that is neither, and
    for two sets of one kind and name.
    """
    sets = [found for name, folder in _folders(suite) for found in _sets_in(folder, name)]
    by_group: dict[str, str] = {}
    for found in sets:
        if found.group in by_group:
            raise UserError(
                f"eval.suite: {by_group[found.group]} and {found.folder} would both be {found.group}: name them, "
                f"eval.suite={{name: folder, other: folder}}"
            )
        by_group[found.group] = found.folder
    return sets


def _folders(suite: Any) -> Iterator[tuple[str | None, Place]]:
    named = isinstance(suite, Mapping)
    entries = list(suite.items()) if named else [(None, folder) for folder in (suite if isinstance(suite, list) else [suite])]
    for name, folder in entries:
        if folder is None:
            continue
        if not isinstance(folder, str) or not folder:
            raise UserError(f"eval.suite: {folder!r} is not a folder; give one, a list of them, or {{name: folder}}")
        yield (str(name) if named else None), place_of(folder, "eval.suite")


def _sets_in(folder: Place, name: str | None) -> list[BenchmarkSet]:
    if not folder.is_dir():
        raise UserError(f"eval.suite: {folder} is not a folder; give one in CLIP_benchmark's layout, or one that contains such")
    if kind := _kind_of(folder):
        return [BenchmarkSet(name or folder.resolve().name, kind, named(folder))]
    paths: list[Place] = sorted(folder.iterdir(), key=str)
    inner = [(path, kind) for path in paths if path.is_dir() and (kind := _kind_of(path))]
    if not inner:
        raise UserError(
            f"eval.suite: neither {folder} nor a folder in it has {TYPE} or {CLASSES}: write one of {', '.join(KINDS)} into "
            f"{folder / TYPE}"
        )
    return [BenchmarkSet(f"{name}_{path.name}" if name else path.name, kind, named(path)) for path, kind in inner]


def _kind_of(folder: Place) -> str | None:
    """The kind that the folder's own files name; None if it is not a set."""
    path = folder / TYPE
    if not path.is_file():
        return CLASSIFICATION if (folder / CLASSES).is_file() else None
    try:
        kind = decode_text(path.read_bytes()).strip()
    except OSError as problem:
        raise UserError(f"eval.suite: {path} cannot be read: {reason(problem)}") from problem
    if kind not in KINDS:
        raise UserError(f"eval.suite: {path} says '{kind[:40]}'{did_you_mean(kind, KINDS)}: it must be one of {', '.join(KINDS)}")
    return kind
