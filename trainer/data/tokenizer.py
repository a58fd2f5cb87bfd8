"""SentencePiece: captions into token ids, and a vocabulary out of captions."""

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor

from trainer.data.captions import training_captions as training_captions  # what a tokenizer is trained on
from trainer.errors import UserError

PADDING, UNKNOWN, END = 0, 1, 2


class Tokenizer:
    """A SentencePiece model whose texts end with the end-of-text token and are padded with 0. Can be pickled."""

    def __init__(self, model: bytes) -> None:
        """From a serialised SentencePiece model; raises UserError when it is none."""
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError, TypeError):
            raise UserError("not a SentencePiece model") from None
        if self._processor.eos_id() < 0:
            raise UserError("a SentencePiece model without an end-of-text token (</s>): train it with eos_id=2")
        # Others' models often use 0 for a token (by default for the unknown), which would be masked: their ids move up by one.
        self._shift = int(self._processor.pad_id() != PADDING)
        self._end: int = self._processor.eos_id() + self._shift

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """From a `.model` file. Raises UserError when it is missing, unreadable, or no SentencePiece model."""
        try:
            return cls(Path(path).expanduser().read_bytes())
        except OSError as problem:
            raise UserError(
                f"tokenizer {path}: {problem.strerror}; data.tokenizer should be the PATH.model of SentencePiece"
            ) from None
        except UserError as problem:
            raise UserError(f"tokenizer {path}: {problem}") from None

    @property
    def vocabulary(self) -> int:
        """The number of token ids, that of padding counted."""
        return int(self._processor.vocab_size()) + self._shift

    def __call__(self, texts: Sequence[str], length: int) -> Tensor:
        """Token ids int64 `[n, length]`. The end-of-text token is the last one of every text, also of a truncated one."""
        ids = torch.full((len(texts), length), PADDING, dtype=torch.int64)
        # One thread: a loader worker has one core, and the texts are short.
        for row, tokens in enumerate(self._processor.encode(list(texts), out_type=int, num_threads=1) if texts else []):
            kept = [*(token + self._shift for token in tokens[: length - 1]), self._end]
            ids[row, : len(kept)] = torch.tensor(kept)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, as the tokenizer has normalised it; padding and end-of-text are left out."""
        return str(self._processor.decode([int(token) - self._shift for token in ids if token not in (PADDING, self._end)]))

    def __getstate__(self) -> bytes:
        return self.model

    def __setstate__(self, state: bytes) -> None:
        self.__init__(state)  # type: ignore[misc]


def train_tokenizer(captions: Iterable[str], path: str | Path, vocabulary: int, seed: int = 0) -> Tokenizer:
    """Train a unigram SentencePiece model of at most `vocabulary` tokens on captions and write it to `path`, whole or not at all.

    Texts are normalised and put into lower case. Raises UserError when there are no captions, or `vocabulary` has no room
    for their characters.
    """
    lines = (" ".join(caption.split()) for caption in captions)
    sentences = [line for line in lines if line]
    if not sentences:
        raise UserError("no captions to train a tokenizer on: set data.tokenizer, or data.caption_key to where the captions are")
    trained = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=trained,
            model_type="unigram",
            vocab_size=vocabulary,
            hard_vocab_limit=False,
            normalization_rule_name="nmt_nfkc_cf",
            byte_fallback=False,
            pad_id=PADDING,
            unk_id=UNKNOWN,
            eos_id=END,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as problem:
        reason = " ".join(str(problem).split())
        raise UserError(
            f"no tokenizer of model.vocabulary={vocabulary} can be trained on {len(sentences)} captions: {reason}"
        ) from None
    tokenizer = Tokenizer(trained.getvalue())
    _write_whole(Path(path).expanduser(), tokenizer.model)
    return tokenizer


def _write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
