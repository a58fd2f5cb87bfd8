"""What the extensions of a sample's files mean."""

from collections.abc import Mapping

IMAGES: tuple[str, ...] = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "jpe", "jfif", "j2k", "jpx")
IMAGES += ("ppm", "pgm", "pbm", "pnm", "ico", "qoi", "dib")
"""Of image files; of a sample with several, the first one in this order is its image."""
WORDS = ("txt", "json", "cls")
DOTS_REMEDY = "the first dot of a name ends its key (WebDataset's rule): rename the files so that they have no other dots"


def printable(name: str) -> str:
    """A name as it can stand in a line: line breaks, controls and bytes that are no UTF-8 are escaped."""
    return name if name.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def file_named(files: Mapping[str, bytes], extension: str) -> bytes | None:
    """The file with this extension, or the only one whose extension ends so: `1.txt`, of photo.1.txt. None without one."""
    if extension in files:
        return files[extension]
    ending = [content for name, content in files.items() if name.endswith(f".{extension}")]
    return ending[0] if len(ending) == 1 else None
