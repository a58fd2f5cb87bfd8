"""Tokenizers as Hugging Face keeps them (`tokenizer.json`), such as those of CLIP and SigLIP. An optional extra, `tokenizers`.

https://github.com/huggingface/tokenizers
"""

import html
import json
from collections.abc import Sequence
from typing import Any

from model.errors import UserError

SPACE = "▁"  # the piece that stands for a blank
WORD_END = "</w>"  # what CLIP's pieces end words with
MENDED = {
    "\u02bc\u2018-\u201b": "'",
    "\u201c-\u201f": '"',
    **{chr(0xFB00 + place): plain for place, plain in enumerate(("ff", "fi", "fl", "ffi", "ffl", "st", "st"))},
}
"""Curly quotes and ligatures."""


class HubPieces:
    """What `model.tokenizer.Tokenizer` asks of a vocabulary, from a tokenizer.json. Its ids move up by one: 0 is padding."""

    def __init__(self, model: bytes) -> None:
        """Raises UserError for anything else, and without the extra."""
        tokenizers = _tokenizers()
        try:
            text = model.decode()
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
            kind = json.loads(text)["model"]
        except Exception:  # the package raises nothing narrower
            raise UserError("not a tokenizer.json of Hugging Face's tokenizers") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        around = list(self._tokenizer.encode("").ids)
        if not around:
            raise UserError("this tokenizer.json does not end texts with a token of their own, as those of CLIP and SigLIP do")
        *start, end = around
        self.start: tuple[int, ...] = tuple(token + 1 for token in start)
        self.end: int = end + 1
        unknown = kind.get("unk_id", self._tokenizer.token_to_id(kind.get("unk_token") or ""))
        self.says_nothing = {token + 1 for token in (unknown, self._tokenizer.token_to_id(SPACE)) if token is not None}
        self.vocabulary = self._tokenizer.get_vocab_size() + 1

    def ids(self, text: str) -> list[int]:
        """The tokens of a cleaned text, without those around it."""
        return [token + 1 for token in self._encoded(text)[1].ids]

    def names(self, text: str) -> list[str]:
        """What each of these tokens stands for, SPACE before what begins a word."""
        read, encoded = self._encoded(text)
        return [_name(read, *span) for span in encoded.offsets]

    def text(self, ids: Sequence[int]) -> str:
        """What tokens stand for."""
        return str(self._tokenizer.decode([token - 1 for token in ids], skip_special_tokens=True)).replace(WORD_END, " ").strip()

    def _encoded(self, text: str) -> tuple[str, Any]:
        # As open_clip reads texts: what was taken from a page may be escaped, and some of it twice.
        read = html.unescape(html.unescape(text))
        return read, self._tokenizer.encode(read, add_special_tokens=False)


def _name(text: str, start: int, end: int) -> str:
    piece = text[start:end]
    begins = start == 0 or piece[:1].isspace() or text[start - 1].isspace()
    return (SPACE if begins else "") + piece.strip()


def clip_tokenizer(merges: Sequence[str]) -> bytes:
    """CLIP's tokenizer as a tokenizer.json, from the merges of its byte pair encoding, best first, as `a b`.

    Radford et al. 2021, section 2.4: lower case, bytes, 49,408 tokens. Raises UserError without the extra.
    """
    tokenizers = _tokenizers()
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())  # in CLIP's order: bytes that can be printed come first
    pairs = [tuple(merge.split()) for merge in merges]
    names = [*letters, *(f"{letter}{WORD_END}" for letter in letters), *map("".join, pairs), "<|startoftext|>", "<|endoftext|>"]
    numbers = {name: number for number, name in enumerate(names)}
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(numbers, pairs, continuing_subword_prefix="", end_of_word_suffix=WORD_END, fuse_unk=False)
    )
    normalizers, splits = tokenizers.normalizers, tokenizers.pre_tokenizers
    # Of what open_clip has ftfy mend, the marks that well-formed texts have too; its guesses at broken encodings are left out.
    mended = [normalizers.Replace(tokenizers.Regex(f"[{marks}]"), plain) for marks, plain in MENDED.items()]
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), *mended, normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = tokenizers.Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    made.pre_tokenizer = splits.Sequence(
        [splits.Split(words, behavior="removed", invert=True), splits.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    start, end = names[-2:]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, numbers[start]), (end, numbers[end])]
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    return str(made.to_str()).encode()


def canonical(model: bytes) -> bytes:
    """A tokenizer.json that reads texts in lower case and without punctuation (SigLIP: big_vision's canonicalize_text)."""
    tokenizers = _tokenizers()
    made, normalizers = tokenizers.Tokenizer.from_str(model.decode()), tokenizers.normalizers
    punctuation = tokenizers.Regex(r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^`{|}~]""")
    steps = [
        normalizers.Replace("_", " "),
        normalizers.Replace(punctuation, ""),
        normalizers.Lowercase(),
        normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    made.normalizer = normalizers.Sequence([*steps, *([made.normalizer] if made.normalizer is not None else [])])
    return str(made.to_str()).encode()


def _tokenizers() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.normalizers
        import tokenizers.pre_tokenizers
        import tokenizers.processors
    except ImportError:
        raise UserError('a tokenizer.json needs tokenizers: pip install "limoe-trainer[tokenizers]"') from None
    return tokenizers
