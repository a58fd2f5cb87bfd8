"""Which shards a pattern means, and whether they are there."""

import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from trainer.errors import UserError

HEADERS_CHECKED = 64  # shards whose first header is read at the start; opening tens of thousands would delay every run
NAMES_SHOWN = 3


def list_shards(pattern: Any, what: str) -> list[str]:
    """The shards that a pattern names: paths, `pipe:` commands and URLs as webdataset opens them.

    A pattern is a path with braces (`{000..019}`, `{a,b}`) or wildcards, a directory (its *.tar, or the folder layout of
    CLIP_benchmark with nshards.txt), `pipe:COMMAND`, a URL, or a list of those. `what` names the configuration key in errors.
    Raises UserError when a local shard is missing, empty or no tar archive, or when nothing matches. Commands and URLs are
    not opened here.
    """
    shards = [shard for text in _texts(pattern, what) for shard in _expand(text, what)]
    if not shards:
        raise UserError(
            f"{what}={pattern}: no shards match; give a pattern such as /path/name-{{000..123}}.tar or a directory of *.tar"
        )
    local = [Path(shard) for shard in shards if not _is_remote(shard)]
    _check_sizes(local, what)
    _check_headers(local, what)
    return shards


def _texts(pattern: Any, what: str) -> list[str]:
    if isinstance(pattern, (str, Path)):
        texts = [str(pattern).strip()]
    # OmegaConf's lists are sequences, but no lists.
    elif isinstance(pattern, Sequence):
        texts = [text for entry in pattern for text in _texts(entry, what)]
    elif pattern is None:
        raise UserError(f"{what} is not set: give shards such as {what}=/path/name-{{000..123}}.tar, or a directory of *.tar")
    else:
        raise UserError(f"{what}={pattern}: expected a shard pattern or a list of those, not {type(pattern).__name__}")
    if "" in texts:
        raise UserError(f"{what} holds an empty shard pattern")
    return texts


def _is_remote(shard: str) -> bool:
    return re.match(r"pipe:|[a-zA-Z][a-zA-Z0-9+.-]*://", shard) is not None


def _expand(text: str, what: str) -> list[str]:
    try:
        names = list(braceexpand(text.removeprefix("file://")))
    except ValueError:
        raise UserError(f"{what}={text}: the braces of this pattern do not pair up") from None
    if _is_remote(names[0]):
        return names
    shards = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            shards += _in_directory(path, what)
        elif not path.exists() and re.search(r"[*?\[]", name):
            shards += sorted(str(found) for found in Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        else:
            shards.append(str(path))
    return shards


def _in_directory(path: Path, what: str) -> list[str]:
    for folder in (path, path / "test"):
        if (folder / "nshards.txt").is_file():
            return _counted(folder, what)
        # A folder may hold training shards beside a test/ of CLIP_benchmark: what lies directly in it is meant.
        if shards := sorted(str(shard) for shard in folder.glob("*.tar")):
            return shards
    raise UserError(f"{what}={path}: no shards match; the directory holds no *.tar, no nshards.txt and no test/nshards.txt")


def _counted(folder: Path, what: str) -> list[str]:
    count = (folder / "nshards.txt").read_text().strip()
    if not count.isdigit() or int(count) == 0:
        raise UserError(f"{what}: {folder / 'nshards.txt'} should hold the number of shards, but holds '{count[:40]}'")
    return [str(folder / f"{index}.tar") for index in range(int(count))]


def _check_sizes(shards: list[Path], what: str) -> None:
    sizes: dict[Path, int] = {}
    for shard in shards:
        try:
            sizes[shard] = shard.stat().st_size
        except FileNotFoundError:
            continue
        except OSError as problem:
            raise UserError(f"{what}: cannot look at shard {shard}: {problem.strerror}") from None
    missing = [shard for shard in shards if shard not in sizes]
    if missing and not sizes:
        raise UserError(f"{what}: no shards match; {_some(missing)} {'does' if len(missing) == 1 else 'do'} not exist")
    if missing:
        raise UserError(f"{what}: {len(missing)} of {len(shards)} shards are missing: {_some(missing)}")
    if empty := [shard for shard in shards if sizes[shard] == 0]:
        raise UserError(f"{what}: {len(empty)} of {len(shards)} shards are empty files: {_some(empty)}")


def _check_headers(shards: list[Path], what: str) -> None:
    step = max(1, -(-len(shards) // HEADERS_CHECKED))
    for shard in shards[::step]:
        try:
            with tarfile.open(shard) as archive:
                archive.next()
        except tarfile.TarError:
            raise UserError(f"{what}: shard {shard} is not a tar archive") from None
        except (OSError, EOFError) as problem:
            raise UserError(f"{what}: cannot read shard {shard}: {problem}") from None


def _some(shards: list[Path]) -> str:
    shown = ", ".join(str(shard) for shard in shards[:NAMES_SHOWN])
    return shown if len(shards) <= NAMES_SHOWN else f"{shown} and {len(shards) - NAMES_SHOWN} more"
