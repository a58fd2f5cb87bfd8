"""The folder that shards are written to: whose it is, and what is already there."""

import contextlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import UserError, reason
from trainer.files import write_whole
from trainer.shards.manifest import is_finished, pretty, read_finished
from trainer.shards.record import Records
from trainer.training.lock import FILE as LOCK
from trainer.training.lock import claim

WORK, SETTINGS, RECORDS = ".unfinished", "settings.json", "records.jsonl"
SHOWN = 3


@dataclass(frozen=True)
class Place:
    """An output folder while this process writes it."""

    folder: Path

    @property
    def work(self) -> Path:
        """For what is needed until the folder is complete."""
        return self.folder / WORK

    def records(self) -> Records:
        """Of the shards that are finished."""
        return Records(self.work / RECORDS)

    def clean(self) -> None:
        """Remove what was needed only while the folder was written."""
        shutil.rmtree(self.work, ignore_errors=True)
        (self.folder / LOCK).unlink(missing_ok=True)

    def empty(self) -> None:
        """Remove what was begun, when no shard is finished."""
        shutil.rmtree(self.work, ignore_errors=True)
        for pattern in ("*-000000.tar", ".*.tmp"):  # in place but not written down yet, or not even in place
            for begun in self.folder.glob(pattern):
                begun.unlink(missing_ok=True)

    def leave(self) -> None:
        """Give back a folder in which nothing was written."""
        self.empty()
        self.clean()
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def take_place(folder: Path, settings: Mapping[str, Any]) -> Place:
    """The output folder, for this process alone until it ends.

    Raises UserError when it contains something else, another process writes it, or it was begun or written with other settings.
    """
    place = Place(folder)
    try:
        _check_free(folder)
        folder.mkdir(parents=True, exist_ok=True)
        claim(folder, "output")
        if is_finished(folder):
            _check_same(read_finished(folder).settings, settings, f"output={folder} was written", "choose another output")
        else:
            place.work.mkdir(exist_ok=True)
            _begin(place, settings)
    except OSError as problem:
        raise UserError(f"output={folder}: {reason(problem)}") from None
    return place


def _check_free(folder: Path) -> None:
    if not folder.exists() or is_finished(folder) or (folder / WORK).is_dir():
        return
    if not folder.is_dir():
        raise UserError(f"output={folder} is a file: give a folder")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK)
    if names:
        shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        raise UserError(f"output={folder} contains other things ({shown}): give a new or empty folder")


def _begin(place: Place, settings: Mapping[str, Any]) -> None:
    """Note the settings; those of what was begun must be the same, unless no shard of it is finished."""
    path = place.work / SETTINGS
    if path.is_file():
        before = json.loads(path.read_text())
        if before == settings:
            return
        if place.records().all:
            remedy = f"give the same to go on, or delete {place.folder} to start again"
            _check_same(before, settings, f"output={place.folder} was begun", remedy)
        place.empty()
        place.work.mkdir()
    write_whole(path, pretty(settings))


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], what: str, remedy: str) -> None:
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if differing:
        was = " ".join(f"{key}={_shown(before.get(key))}" for key in differing)
        asked = " ".join(f"{key}={_shown(now.get(key))}" for key in differing)
        raise UserError(f"{what} with {was}, not {asked}: {remedy}")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
