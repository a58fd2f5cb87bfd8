"""Texts into token ids, by a vocabulary of SentencePiece or of Hugging Face's tokenizers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import sentencepiece
import torch
from torch import Tensor

from model.errors import UserError, reason
from model.hub_tokenizer import SPACE, HubPieces
from model.paths import user_path
from model.text import clean_text

PADDING, UNKNOWN, END = 0, 1, 2


@dataclass(frozen=True)
class Encoded:
    """n texts. ids: int64 `[n, length]`; counts: tokens of each whole text, including its end; beyond `length` they were cut.

    known: whether a text has any token that is neither unknown nor blank, even beyond the cut.
    """

    ids: Tensor
    counts: list[int]
    known: list[bool]


@dataclass(frozen=True)
class WordPiece:
    """What a token is a piece of. pieces: how many tokens the word has.

    word: what stands between blanks, in lower case, without the punctuation around it; of punctuation alone, that itself.
    """

    word: str
    pieces: int


class Pieces(Protocol):
    """The pieces that texts are cut into. Ids count from 1: 0 is padding.

    start, end: what a text stands between; says_nothing: ids of blanks, and of what is unknown; vocabulary: ids, with padding.
    """

    start: tuple[int, ...]
    end: int
    says_nothing: set[int]
    vocabulary: int

    def ids(self, text: str) -> list[int]:
        """The tokens of a cleaned text, without those around it."""

    def names(self, text: str) -> list[str]:
        """What each of these tokens stands for, SPACE before what begins a word; what is unknown as it was."""

    def text(self, ids: Sequence[int]) -> str:
        """What tokens stand for."""


class SentencePieces:
    """Pieces of a SentencePiece model."""

    def __init__(self, model: bytes) -> None:
        """From a serialised model; raises UserError if it is not one."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError, TypeError):
            raise UserError("not a SentencePiece model") from None
        if self._processor.eos_id() < 0:
            raise UserError("this SentencePiece model has no end-of-text token (</s>): train it with eos_id=2")
        # Models trained elsewhere often use 0 for a token (by default the unknown one), which would be masked: shift ids by one.
        self._shift = int(self._processor.pad_id() != PADDING)
        self.start: tuple[int, ...] = ()
        self.end: int = self._processor.eos_id() + self._shift
        self.says_nothing = {token + self._shift for token in (self._processor.unk_id(), self._processor.piece_to_id(SPACE))}
        self.vocabulary = int(self._processor.vocab_size()) + self._shift

    def ids(self, text: str) -> list[int]:
        """As Pieces."""
        # One by one: for a list SentencePiece starts a thread, at ten times the cost of a short text.
        return [token + self._shift for token in self._processor.encode(text, out_type=int)]

    def names(self, text: str) -> list[str]:
        """As Pieces."""
        # As text, not as ids: the id of an unknown piece does not tell what it was.
        return [str(piece) for piece in self._processor.encode(text, out_type=str)]

    def text(self, ids: Sequence[int]) -> str:
        """As Pieces."""
        return str(self._processor.decode([int(token) - self._shift for token in ids]))


class Tokenizer:
    """Pieces whose texts end with the end-of-text token and are padded with 0. Can be pickled."""

    def __init__(self, model: bytes) -> None:
        """From a serialised SentencePiece model or a tokenizer.json of Hugging Face; raises UserError if it is neither."""
        self.model = model
        self._pieces: Pieces = HubPieces(model) if model.startswith(b"{") else SentencePieces(model)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """From a file. Raises UserError if it is missing, unreadable, or neither a SentencePiece model nor a tokenizer.json."""
        try:
            return cls(user_path(path).read_bytes())
        except OSError as problem:
            raise UserError(f"tokenizer {path}: {reason(problem)}; give the PATH.model of a SentencePiece model") from None
        except UserError as problem:
            raise UserError(f"tokenizer {path}: {problem}") from None

    @property
    def vocabulary(self) -> int:
        """The number of token ids, including padding."""
        return self._pieces.vocabulary

    def __call__(self, texts: Sequence[str], length: int) -> Tensor:
        """Token ids int64 `[n, length]`. The end-of-text token is the last one of every text, also of a truncated one."""
        return self.encode(texts, length).ids

    def encode(self, texts: Sequence[str], length: int) -> Encoded:
        """The ids that a call returns, and what was found on the way. Texts are cleaned first: see model.text."""
        start, end = self._pieces.start, self._pieces.end
        found = [self._pieces.ids(clean_text(text)) for text in texts]
        ids = torch.full((len(found), length), PADDING, dtype=torch.int64)
        for row, tokens in enumerate(found):
            kept = [*[*start, *tokens][: length - 1], end]
            ids[row, : len(kept)] = torch.tensor(kept)
        counts = [len(start) + len(tokens) + 1 for tokens in found]
        return Encoded(ids, counts, [not self._pieces.says_nothing.issuperset(row) for row in found])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, as normalised by the tokenizer, without padding and without what all texts stand between."""
        around = (PADDING, *self._pieces.start, self._pieces.end)
        return self._pieces.text([int(token) for token in ids if token not in around])

    def pieces(self, text: str, length: int) -> list[str]:
        """The piece that each token of `encode([text], length)` is, in their order, without the end-of-text token.

        SPACE stands for a blank, and for a token that all texts begin with; what the tokenizer does not know is as it was.
        """
        return self._names(text)[: length - 1]

    def _names(self, text: str) -> list[str]:
        return [*(SPACE for _ in self._pieces.start), *self._pieces.names(clean_text(text))]

    def words(self, text: str, length: int) -> list[WordPiece]:
        """What word each token of `encode([text], length)` is a piece of, in their order, without the end-of-text token.

        A piece of a word that the length cuts has the whole word's name.
        """
        words: list[list[str]] = []
        place: list[int] = []
        for piece in self._names(text):
            if not words or piece.startswith(SPACE):
                words.append([])
            words[-1].append(piece)
            place.append(len(words) - 1)
        named = [WordPiece(_bare("".join(pieces).replace(SPACE, "")), len(pieces)) for pieces in words]
        return [named[word] for word in place[: length - 1]]

    def __getstate__(self) -> bytes:
        return self.model

    def __setstate__(self, state: bytes) -> None:
        self.__init__(state)  # type: ignore[misc]


def _bare(word: str) -> str:
    """A word in lower case without the punctuation around it, which one that is nothing else keeps."""
    inner = [place for place, character in enumerate(word) if character.isalnum()]
    return word[inner[0] : inner[-1] + 1].lower() if inner else word
