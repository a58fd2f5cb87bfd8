"""Which shards a pattern names, and whether they exist."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from trainer.data.shards.archive import Archive
from trainer.data.shards.litter import is_litter
from trainer.data.shards.names import printable
from trainer.data.shards.opening import is_remote, unreadable_scheme
from trainer.data.shards.remote.path import WEB, Place, RemotePath
from trainer.data.shards.remote.secret import SecretAddress, address_of, hide_secret
from trainer.data.shards.remote.store import STORES, scheme_of
from trainer.errors import UserError, reason

HEADERS_CHECKED = 64  # shards whose first header is read at the start; opening tens of thousands would delay every run
NAMES_SHOWN = 3

PARTS = {
    "training": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
"""Words in the name of a folder or shard that say which part of a data set it is."""
TRAINING, HELD_OUT = ("training",), ("test", "validation")
"""Names of PARTS, the best first."""
ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""Endings of shards in a folder; compressed ones are used only if there are no others."""

Identity = str | tuple[int, int]
"""What two names of the same shard have in common: device and inode of a file; for a command or URL, its text."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Wanted:
    """parts: names of PARTS, the best first; tell: whether to report what is left out."""

    parts: tuple[str, ...]
    tell: bool = True


def list_shards(pattern: Any, what: str, parts: tuple[str, ...] | None = None) -> list[str]:
    """The shards that a pattern names, each once: paths, `pipe:` commands and URLs.

    A pattern is a path with braces (`{000..019}`, `{a,b}`) or wildcards, a directory, `pipe:COMMAND`, a URL, or a list of
    those. A URL in a store (s3://) may have wildcards or be a directory too, and on a server (https://) a directory if it ends
    in a slash. A directory means its *.tar, or CLIP_benchmark's layout (nshards.txt, 0.tar, …), in itself or in a folder for each
    part of the data set, such as train/ and test/. `what` is the configuration key, which says which part is wanted: if the
    names in a directory or wildcard show several parts, data.train gets only training shards, and other keys never do.
    `parts`, the best first, are for a key that wants several: each is then listed by itself, and nothing is said of the others.
    Raises UserError when a local shard is missing, empty or not a tar archive, when nothing matches or only another part does,
    and for a URL that nothing can read, or a directory in a store that cannot be listed. Shards at URLs are not opened here.
    """
    try:
        wanted = _Wanted(parts, tell=False) if parts else _Wanted(_wanted_parts(what))
        shards = [shard for text in _texts(pattern, what) for shard in _expand(text, what, wanted)]
    except OSError as problem:  # a folder without read permission
        told = f"{problem.filename}: {reason(problem)}" if problem.filename else str(problem)
        raise UserError(f"{what}={pattern}: {told}") from None
    if not shards:
        raise UserError(
            f"{what}={pattern}: no shards match; give a pattern such as /path/name-{{000..123}}.tar or a directory of *.tar"
        )
    local = [Path(shard) for shard in shards if not is_remote(shard)]
    _check_sizes(local, what)
    _check_headers(local, what)
    return _each_once(shards, what)


def identify(shards: Sequence[str]) -> list[Identity]:
    """The identity of each shard. Raises OSError for a missing file."""

    def identity(shard: str) -> Identity:
        if is_remote(shard):
            return shard
        status = Path(shard).stat()
        return status.st_dev, status.st_ino

    return [identity(shard) for shard in shards]


def name_some(shards: Sequence[str | Place]) -> str:
    """`a.tar, b.tar, c.tar and 7 more`"""
    shown = ", ".join(printable(str(shard)) for shard in shards[:NAMES_SHOWN])
    return shown if len(shards) <= NAMES_SHOWN else f"{shown} and {len(shards) - NAMES_SHOWN} more"


def tars_in(folder: Path) -> list[Path]:
    """The shards in a local folder itself, sorted; compressed ones only if there are no others. Raises OSError."""
    return [Path(str(path)) for path in _tars_in(folder)]


def _texts(pattern: Any, what: str) -> list[str]:
    if isinstance(pattern, (str, Path)):
        texts = [(address_of(pattern) if isinstance(pattern, SecretAddress) else str(pattern)).strip()]
    # OmegaConf's lists are sequences, but not lists.
    elif isinstance(pattern, Sequence):
        texts = [text for entry in pattern for text in _texts(entry, what)]
    elif pattern is None:
        raise UserError(f"{what} is not set: give shards such as {what}=/path/name-{{000..123}}.tar, or a directory of *.tar")
    else:
        raise UserError(f"{what}={pattern}: expected a shard pattern or a list of these, not {type(pattern).__name__}")
    if "" in texts:
        raise UserError(f"{what} contains an empty shard pattern")
    if impossible := [text for text in texts if "\0" in text]:
        raise UserError(f"{what}={printable(impossible[0])}: no path contains a NUL character")
    return texts


def _expand(text: str, what: str, wanted: _Wanted) -> list[str]:
    try:
        names = list(braceexpand(text.removeprefix("file://")))
    except ValueError:
        raise UserError(f"{what}={text}: the braces in this pattern do not match") from None
    shards: list[str] = []
    for name in names:
        if is_remote(name):
            shards += _elsewhere(name, what, wanted)
            continue
        path = Path(name).expanduser()
        if path.is_dir():
            shards += _in_directory(path, what, wanted)
        elif not path.exists() and re.search(r"[*?\[]", name):
            shards += _matching(path, what, wanted)
        else:
            shards.append(str(path))
    return shards


def _elsewhere(name: str, what: str, wanted: _Wanted) -> list[str]:
    """The shards that a command or URL names. Only what may be a directory is looked up."""
    scheme = scheme_of(name)
    if advice := unreadable_scheme(name):
        raise UserError(f"{what}: {advice}")
    path = RemotePath(name)
    if scheme in WEB and name.partition("?")[0].endswith("/"):
        return _on_server(path, what, wanted)
    if scheme in STORES and re.search(r"[*?\[]", name):
        return _matching(path, what, wanted)
    if scheme in STORES and not name.lower().endswith(ENDINGS) and (name.endswith("/") or path.is_dir()):
        return _in_directory(path, what, wanted)
    return [hide_secret(name)]


def _on_server(path: RemotePath, what: str, wanted: _Wanted) -> list[str]:
    """The shards of a server's folder: as many as it says there are, or those in its list of files, which few servers give."""
    for folder in (*(path / name for part in wanted.parts for name in PARTS[part]), path):
        if shards := _counted(folder, what):
            return [_named(shard) for shard in shards]
    return _in_directory(path, what, wanted)


def _wanted_parts(what: str) -> tuple[str, ...]:
    """Names of PARTS for a configuration key, the best first."""
    if what == "data.train" or what.startswith("data.train."):  # a named source
        return TRAINING
    return ("validation", "test") if what == "data.val" else HELD_OUT


def shared_shards(shards: Sequence[str], others: Sequence[str]) -> list[str]:
    """Those of the shards that are among the others too, under any name."""
    known = set(identify(others))
    return [shard for shard, identity in zip(shards, identify(shards), strict=True) if identity in known]


def part_of(names: Sequence[str]) -> str | None:
    """The part of a data set, according to the names of a shard's folders and its own; the last that shows one decides."""
    return next((part for part in map(_part_of, reversed(names)) if part), None)


def _part_of(name: str) -> str | None:
    """The part of a data set, according to the name of a folder or shard: `test-000.tar`, `cc12m_train_0001.tar`."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((part for part, names in PARTS.items() if words.intersection(names)), None)


def _tars_in(folder: Place) -> list[Place]:
    names: list[Place] = [path for path in folder.iterdir() if path.name.lower().endswith(ENDINGS) and not is_litter(path.name)]
    names.sort(key=str)
    plain = [path for path in names if path.name.lower().endswith(".tar")]
    return plain or names


def _in_directory(path: Place, what: str, wanted: _Wanted) -> list[str]:
    direct = _tars_in(path)
    for part in wanted.parts:
        for name in PARTS[part]:
            if (path / name).is_dir() and (shards := _counted(path / name, what) or _tars_in(path / name)):
                return [_named(shard) for shard in shards]
        if shards := [shard for shard in direct if _part_of(shard.name) == part]:
            return [_named(shard) for shard in shards]
    own = next((part for part, names in PARTS.items() if path.resolve().name.lower() in names), None)
    if own is None or own in wanted.parts:
        shards = _counted(path, what) or [shard for shard in direct if _part_of(shard.name) is None]
        if shards:
            return [_named(shard) for shard in shards]
    elif not wanted.tell:
        return []
    elif direct:
        direct = [path]
    direct = direct or [path / name for names in PARTS.values() for name in names if (path / name).is_dir()]
    if direct:
        example = direct[0] / "*.tar" if direct[0].is_dir() else direct[0]
        raise UserError(
            f"{what}={path}: no shards match; {name_some(direct)} {'are' if len(direct) > 1 else 'is'} another part of the data "
            f"set by name, or empty: if you do mean this part, name the shards, such as {example}"
        )
    lacking = "no *.tar and no nshards.txt, and neither does a folder in it named after a part of a data set, such as"
    folder = "train/" if wanted.parts == TRAINING else "test/: there are no test shards"
    raise UserError(f"{what}={path}: no shards match; the directory contains {lacking} {folder}")


def _named(path: Place) -> str:
    return path.shard if isinstance(path, RemotePath) else str(path)


def _counted(folder: Place, what: str) -> list[Place]:
    """The shards of CLIP_benchmark's layout, [] for another folder."""
    if not (folder / "nshards.txt").is_file():
        return []
    count = (folder / "nshards.txt").read_text().strip()
    if not count.isdigit() or int(count) == 0:
        raise UserError(f"{what}: {folder / 'nshards.txt'} should contain the number of shards, but contains '{count[:40]}'")
    return [folder / f"{index}.tar" for index in range(int(count))]


def _matching(pattern: Place, what: str, wanted: _Wanted) -> list[str]:
    """The files that match a path with wildcards, without litter and unwanted parts of the data set."""
    written = set(pattern.parts)

    def found_by_wildcard(path: Place) -> list[str]:
        return [part for part in path.parts if part not in written]

    found = _glob(pattern)
    found = [path for path in found if not any(map(is_litter, found_by_wildcard(path)))]
    by_part: dict[str | None, list[Place]] = {}
    for path in found:
        by_part.setdefault(part_of(found_by_wildcard(path)), []).append(path)
    if len(by_part) > 1:  # otherwise the pattern itself says which part it means
        best = next((part for part in wanted.parts if part in by_part), None)
        kept = by_part.get(best, [])
        if kept:
            left = [path for path in found if path not in set(kept)]
            if wanted.tell:
                logger.warning("%s=%s: %s left out: another part of the data set by name", what, pattern, name_some(left))
            found = kept
    return [
        shard for path in found for shard in (_in_directory(path, what, wanted) if _is_folder_of_shards(path) else [_named(path)])
    ]


def _glob(pattern: Place) -> list[Place]:
    if isinstance(pattern, RemotePath):
        return list(pattern.glob())
    found: list[Place] = []
    found += sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    return found


def _is_folder_of_shards(path: Place) -> bool:
    return not path.name.lower().endswith(ENDINGS) and path.is_dir()


def _each_once(shards: list[str], what: str) -> list[str]:
    """The shards without repetitions, even under another name."""
    first: dict[Identity, str] = {}
    again = []
    for shard, identity in zip(shards, identify(shards), strict=True):
        if identity in first:
            again.append(shard)
        first.setdefault(identity, shard)
    if again:
        logger.warning("%s names %d shards more than once, which are read once: %s", what, len(again), name_some(again))
    return list(first.values())


def _check_sizes(shards: list[Path], what: str) -> None:
    sizes: dict[Path, int] = {}
    for shard in shards:
        try:
            sizes[shard] = shard.stat().st_size
        except FileNotFoundError:
            continue
        except OSError as problem:
            raise UserError(f"{what}: cannot access shard {shard}: {reason(problem)}") from None
    missing = [shard for shard in shards if shard not in sizes]
    if missing and not sizes:
        raise UserError(f"{what}: no shards match; {name_some(missing)} {'does' if len(missing) == 1 else 'do'} not exist")
    if missing:
        raise UserError(f"{what}: {len(missing)} of {len(shards)} shards are missing: {name_some(missing)}")
    if empty := [shard for shard in shards if sizes[shard] == 0]:
        raise UserError(f"{what}: {len(empty)} of {len(shards)} shards are empty files: {name_some(empty)}")


def _check_headers(shards: list[Path], what: str) -> None:
    step = max(1, -(-len(shards) // HEADERS_CHECKED))
    for shard in shards[::step]:
        archive = Archive(str(shard))
        try:
            next(archive, None)
        finally:
            archive.close()
        if archive.problem:
            raise UserError(f"{what}: shard {printable(str(shard))} is not a readable tar archive: {archive.problem}")
