"""Whatever text enters can be encoded."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.text import MOST_CHARACTERS, clean_text
from model.tokenizer import END, Tokenizer
from tests.trainer.data.shards_on_disk import small_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a \t dog\r\n runs ", "a dog runs"),
        ("nice picture \ud83d", "nice picture"),  # half of an emoji
        ("\ude00 nice", "nice"),
        ("nice \ud83d\ude00", "nice \U0001f600"),  # both halves, each a character of its own
        ("a\0dog", "a dog"),
        ("a\x1bdog\x7f", "a dog"),
        ("\ufeffa dog", "a dog"),
        ("one\u2028two\u2029three\x0bfour\x0cfive\x85six", "one two three four five six"),
        ("\u200fשלום\u200e", "שלום"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # spelled with a non-joiner
        ("a\u200bdog", "a dog"),
        ("caf\ufffd", "caf"),
        (" \u00a0\u3000\u200e\0", ""),
        ("日本語", "日本語"),
    ],
)
def test_what_becomes_of_a_text(text: str, expected: str) -> None:
    assert clean_text(text) == expected


def test_a_text_of_megabytes_is_cut() -> None:
    assert clean_text("ab" * 2_000_000) == "ab" * (MOST_CHARACTERS // 2)


# Without its default st.text() draws no surrogates; those are what this is about.
anything = st.text(st.characters(exclude_categories=()), max_size=60)


@given(anything)
def test_any_text_becomes_one_line_that_can_be_encoded_and_stays(text: str) -> None:
    cleaned = clean_text(text)
    cleaned.encode()
    assert clean_text(cleaned) == cleaned
    assert cleaned == cleaned.strip()
    assert not any(character in cleaned for character in "\0\n\r\t\u2028\ufeff")


@given(st.lists(anything, max_size=4))
def test_any_text_can_be_tokenized(tokenizer: Tokenizer, texts: list[str]) -> None:
    encoded = tokenizer.encode(texts, 6)
    assert encoded.ids.shape == (len(texts), 6)
    assert bool((encoded.ids < tokenizer.vocabulary).all())
    for row, count in zip(encoded.ids.tolist(), encoded.counts, strict=True):
        assert row.index(END) == min(count, 6) - 1


def test_what_a_tokenizer_finds_in_a_text(tokenizer: Tokenizer) -> None:
    texts = ["picture", "", "漢字", "漢 字", "\U0001f600 \U0001f600", "\u200d", "漢 picture", "picture number 7 of a small set"]
    encoded = tokenizer.encode(texts, 4)
    assert encoded.known == [True, False, False, False, False, False, True, True]
    assert encoded.counts[1] == 1, "its end alone"
    whole = tokenizer.encode(texts[-1:], 60)
    assert int((whole.ids != 0).sum()) == whole.counts[0] == encoded.counts[-1]
    assert pickle.loads(pickle.dumps(tokenizer)).encode(texts, 4).known == encoded.known
