"""Lists and mappings on a command line, with the texts in them quoted where Hydra could not read them otherwise.

In `{cc12m: {shards: /x/{000..999}.tar, weight: 2}}` the braces of the pattern are no mapping: they stand within a text.
"""

from collections.abc import Callable

OPEN, CLOSE = "[{", "]}"


class KeyTwice(Exception):
    """A key stands twice in one mapping, of which Hydra would silently take the last."""


def quote_within(value: str, is_readable: Callable[[str], bool]) -> str:
    """A list or mapping with every text in it in quotes that is not readable as it is; as it is where brackets do not match.

    Raises KeyTwice.
    """
    try:
        text, end = _value(value, 0, is_readable)
    except IndexError:
        return value
    return value if value[end:].strip() else text


def _value(text: str, at: int, is_readable: Callable[[str], bool]) -> tuple[str, int]:
    """What begins at an index, and the index after it. Raises IndexError where the text ends too soon."""
    start, at = at, _after_blanks(text, at)
    blanks = text[start:at]
    if text[at] == "[":
        made, end = _list(text, at, is_readable)
    elif text[at] == "{":
        made, end = _mapping(text, at, is_readable)
    elif text[at] in "\"'":
        end = _after_quotes(text, at)
        made = text[at:end]
    else:
        end = _after_text(text, at)
        made = text[at:end].rstrip()
        if made and not is_readable(made):
            made = '"' + made.replace('"', '\\"') + '"'
    return blanks + made, end


def _list(text: str, at: int, is_readable: Callable[[str], bool]) -> tuple[str, int]:
    made, at = "[", at + 1
    while True:
        part, at = _value(text, at, is_readable)
        at = _after_blanks(text, at)
        made += part + text[at]
        if text[at] == "]":
            return made, at + 1
        if text[at] != ",":
            raise IndexError
        at += 1


def _mapping(text: str, at: int, is_readable: Callable[[str], bool]) -> tuple[str, int]:
    made, at = "{", at + 1
    keys: set[str] = set()
    while True:
        at = _after_blanks(text, at)
        if text[at] == "}":
            return made + "}", at + 1
        colon = text.index(":", at) if ":" in text[at:] else len(text)
        key = text[at:colon].strip().strip("\"'")
        if key in keys:
            raise KeyTwice(f"names '{key}' twice: give each a name of its own")
        keys.add(key)
        part, end = _value(text, colon + 1, is_readable)
        made += text[at:colon] + ":" + part
        at = _after_blanks(text, end)
        made += text[at] if text[at] == "," else ""
        if text[at] not in ",}":
            raise IndexError
        at += text[at] == ","


def _after_blanks(text: str, at: int) -> int:
    while text[at].isspace():
        at += 1
    return at


def _after_quotes(text: str, at: int) -> int:
    quote, at = text[at], at + 1
    while text[at] != quote:
        at += 2 if text[at] == "\\" else 1
    return at + 1


def _after_text(text: str, at: int) -> int:
    """The index of the comma or bracket that ends a text; brackets within it come in pairs."""
    depth = 0
    while depth or text[at] not in f",{CLOSE}":
        depth += (text[at] in OPEN) - (text[at] in CLOSE)
        at += 1
    return at
