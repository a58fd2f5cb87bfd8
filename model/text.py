"""Text input: whatever a caption, a class name or a prompt contains, the result can be encoded."""

MOST_CHARACTERS = 65_536  # the rest is ignored: models do not read that far, and a text may be megabytes long

# Without a width: direction marks, the byte order mark, the word joiner. Joiners (U+200C, U+200D) stay: spelling needs them.
_MARKS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF)
# Controls (NUL among them), the zero-width space, and the mark of something that could not be decoded.
_GAPS = (*range(0x20), *range(0x7F, 0xA0), 0x200B, 0xFFFD)
_UNSEEN: dict[int, str] = dict.fromkeys(_MARKS, "") | dict.fromkeys(_GAPS, " ")


def clean_text(text: str) -> str:
    """The text in one line: encodable, without invisible characters, with single spaces; "" if nothing is left.

    Halves of a surrogate pair (Unicode 3.9, D71-D75; JSON may hold a single one) are joined where both are there, and dropped
    where one is missing. Of a longer text, the first MOST_CHARACTERS characters.
    """
    text = text[:MOST_CHARACTERS]
    if not (text.isascii() and text.isprintable()):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").translate(_UNSEEN)
    return " ".join(text.split())
