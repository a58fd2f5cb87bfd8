"""Text files in the encodings that people have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.text_files import decode_text, split_lines
from trainer.errors import UserError

TEXT = "Hündin\n猫 \U0001f600"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_utf_8_and_what_has_a_byte_order_mark_is_read(encoding: str) -> None:
    assert decode_text(TEXT.encode(encoding)) == TEXT


@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize("bits", [16, 32])
def test_both_byte_orders(order: str, bits: int) -> None:
    assert decode_text(f"\ufeff{TEXT}".encode(f"utf-{bits}-{order}")) == TEXT


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("caf\xe9 noir".encode("latin-1"), r"is not UTF-8 \(byte 0xe9 at 3, perhaps Latin-1\): convert it to UTF-8"),
        (b"\xff\xfea", r"is not UTF-16 \(byte 0x61 at"),
        ("a dog".encode("utf-16-le"), "NUL bytes, perhaps UTF-16 without a byte order mark"),
    ],
)
def test_anything_else_is_told(content: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        decode_text(content)


def test_nuls_at_the_end_are_padding() -> None:
    assert decode_text(b"a dog\0\0").rstrip("\0") == "a dog"


@given(st.binary(max_size=40))
def test_any_bytes_are_text_or_told(content: bytes) -> None:
    try:
        decode_text(content)
    except UserError as problem:
        assert "\n" not in str(problem)


def test_lines_end_at_line_breaks_alone() -> None:
    assert split_lines("a\nb\r\nc\rd\u2028e\x0bf\x0cg\x85h\x1ci") == ["a", "b", "c", "d\u2028e\x0bf\x0cg\x85h\x1ci"]
