"""Exports on the Hugging Face Hub: `hf://OWNER/NAME`, `hf://OWNER/NAME@REVISION/FOLDER`, wherever an export is named.

The library huggingface_hub downloads them into its cache, which later calls read, with or without a network. Its environment
variables apply: HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE.
"""

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from model.errors import UserError, check_extra, reason
from model.layout import ARCHITECTURE, CONFIG, LOADED, check_ours
from model.paths import user_path

OPEN_CLIP = "open_clip_config.json"
"""What tells a model of open_clip on the Hub."""
_SCHEME = re.compile(r"hf:/{1,2}(?=[^/])")  # a Path has lost one of the slashes
_PLACE = re.compile(r"(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>refs/\w+/[^/]+|[^/]+))?(/(?P<folder>.*))?")


@dataclass(frozen=True)
class HubPlace:
    """A folder of a repository. revision: a branch, tag or commit, None: main; folder: `""` is the repository itself."""

    repository: str
    revision: str | None
    folder: str

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repository}{at}{'/' if self.folder else ''}{self.folder}"

    @classmethod
    def read(cls, text: str) -> "HubPlace":
        """What a user means by `hf://…`. Raises UserError for what names no repository."""
        found = _PLACE.fullmatch(_SCHEME.sub("", text.strip(), count=1))
        folders = [part for part in (found["folder"] or "").split("/") if part] if found else []
        if not found or ".." in folders:
            raise UserError(f"{text}: write hf://OWNER/NAME, or hf://OWNER/NAME@REVISION/FOLDER")
        revision = unquote(found["revision"]) if found["revision"] else None
        return cls(found["repository"], revision, "/".join(folders))


def is_on_hub(place: str | os.PathLike[str]) -> bool:
    """Whether a place is written as one on the Hub."""
    return _SCHEME.match(os.fspath(place).strip()) is not None


def local_folder(place: str | os.PathLike[str], what: str = "") -> Path:
    """The folder on this machine that a place means: a path as `user_path` reads it, or an export on the Hub, downloaded.

    what: names the key in errors. Raises UserError for what cannot be had.
    """
    return download(HubPlace.read(os.fspath(place))) if is_on_hub(place) else user_path(place, what)


def download(place: HubPlace) -> Path:
    """The folder of the cache with the export's files, its description first: what is no export of ours is not fetched.

    Raises UserError for a repository or revision that cannot be had, and for a model of another kind.
    """
    folder = _snapshot(place, (ARCHITECTURE, CONFIG, OPEN_CLIP))
    described = folder / place.folder
    if (described / OPEN_CLIP).is_file():
        raise UserError(
            f"{place} is a model of open_clip, and no export of `python -m trainer.export`: "
            f"`python -m trainer.evaluate open_clip=hf-hub:{place.repository}` evaluates it"
        )
    check_ours(described, str(place))
    if not any((described / name).is_file() for name in (ARCHITECTURE, CONFIG)):
        raise UserError(f"{place}: no {ARCHITECTURE} there: this is no export of `python -m trainer.export`")
    commit = HubPlace(place.repository, folder.name, place.folder)  # whoever pushes meanwhile changes nothing
    return _snapshot(commit, LOADED, place) / place.folder


def _snapshot(place: HubPlace, names: tuple[str, ...], typed: HubPlace | None = None) -> Path:
    """Fetch the files of these names, as far as the folder has them; returns the cache's copy of the repository.

    typed: how the user calls the place.
    """
    asked = typed or place
    hub = _library(str(asked))
    folder = glob.escape(f"{place.folder}/" if place.folder else "")
    try:
        return Path(hub.snapshot_download(place.repository, revision=place.revision, allow_patterns=[folder + n for n in names]))
    except hub.errors.GatedRepoError as problem:
        raise UserError(
            f"{asked} is gated: ask for access on its page, then log in with `hf auth login` or set HF_TOKEN"
        ) from problem
    except hub.errors.RepositoryNotFoundError as problem:
        raise UserError(
            f"{asked}: there is no such repository, or it is private: check the name, or log in with `hf auth login` or HF_TOKEN"
        ) from problem
    except hub.errors.RevisionNotFoundError as problem:
        raise UserError(f"{asked}: the repository has no revision '{asked.revision}': leave @{asked.revision} out") from problem
    except hub.errors.HFValidationError as problem:
        raise UserError(f"{asked}: write hf://OWNER/NAME, or hf://OWNER/NAME@REVISION/FOLDER ({reason(problem)})") from problem
    except hub.errors.LocalEntryNotFoundError as problem:
        if hub.constants.is_offline_mode():
            raise UserError(f"{asked} is not in the cache, and HF_HUB_OFFLINE is set: unset it, or give a folder") from problem
        raise UserError(
            f"{asked} is not in the cache, and {hub.constants.ENDPOINT} cannot be reached: check the network, or give a folder"
        ) from problem
    except OSError as problem:  # of the server, the network or the disk
        raise UserError(f"{asked} cannot be downloaded ({reason(problem)}): try again, or give a folder") from problem


def _library(asked: str) -> Any:
    check_extra("huggingface_hub", "hf", f"{asked}: the Hugging Face Hub needs huggingface_hub")
    import huggingface_hub

    return huggingface_hub
