"""What systems and programs leave next to data: one rule for archives, folders and wildcards."""

import re

_NAMES = {
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "@eadir",
    "#recycle",
    "pax_global_header",
}
_PATTERNS = re.compile(
    r"\..*"  # hidden: .DS_Store, AppleDouble's ._000.jpg, NFS's .nfs0001, an editor's .000.txt.swp
    r"|.*~|#.*#|.*\.(bak|orig|swp|swo|tmp|part|partial|crdownload)"  # backups and unfinished downloads
    r"|@?paxheaders?(\..*)?|@longlink"  # a pax or GNU archive unpacked by a program that knows neither
    r"|__.*__",  # webdataset's own notes
    re.DOTALL,
)


def is_litter(path: str) -> bool:
    """Whether a path, relative to where it was found, is not data: hidden, a backup, or a system's own file or folder."""
    # By hand, since every file of an archive comes by here: pathlib takes ten times as long.
    parts = (part for part in path.lower().split("/") if part not in ("", ".", ".."))
    return any(part in _NAMES or _PATTERNS.fullmatch(part) is not None for part in parts)
