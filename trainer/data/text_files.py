"""Text files as people write them, including byte order marks."""

import codecs
import re

from trainer.errors import UserError

# The longer marks first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_END = re.compile(r"\r\n|\n|\r")


def decode_text(content: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 that begins with a byte order mark.

    Raises UserError, with text to follow the file's name, for any other encoding: a wrong guess would be learned.
    """
    encoding = encoding_of(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as problem:
        byte = f"byte 0x{content[problem.start]:02x} at {problem.start}"
        guess = ", perhaps Latin-1" if encoding == "utf-8" else ""
        raise UserError(f"is not {encoding.removesuffix('-sig').upper()} ({byte}{guess}): convert it to UTF-8") from None
    if "\0" in text.rstrip("\0"):
        raise UserError("contains NUL bytes, perhaps UTF-16 without a byte order mark: convert it to UTF-8")
    return text


def encoding_of(head: bytes) -> str:
    """The encoding of a file that begins so: what its byte order mark says, else UTF-8."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")


def split_lines(text: str) -> list[str]:
    """The lines of a text. Unlike str.splitlines, no line ends at U+2028, a form feed or the like: captions contain those."""
    return _LINE_END.split(text)
