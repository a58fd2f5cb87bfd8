"""Samples that cannot be written: counted by kind, listed with the reason, never fatal."""

from typing import NamedTuple

BROKEN_SHARD = "shard ends early"
MISSING_FILE = "file is missing"
UNREADABLE_FILE = "file cannot be read"
NO_IMAGE = "no image"
NO_CAPTION = "no caption"
BAD_LABEL = "label cannot be read"
TOO_LARGE = "image is too large"
UNDECODABLE = "image cannot be decoded"
UNENCODABLE = "image cannot be encoded"
TOO_SMALL = "image is smaller than min_side"
TOO_NARROW = "image is longer than max_aspect"
SECOND_IMAGE = "another image of the same name"
REPEATED = "key was seen before"


class Bad(NamedTuple):
    """A sample that was left out. key: what it is called where it comes from; kind: one of this module's; why: in a few words."""

    key: str
    kind: str
    why: str


class Unfit(Exception):
    """A sample cannot be written."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind
