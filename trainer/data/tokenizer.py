"""A SentencePiece vocabulary out of captions."""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from model.paths import user_path
from model.tokenizer import END, PADDING, UNKNOWN
from model.tokenizer import Tokenizer as Tokenizer
from trainer.data.shards.captions import training_captions as training_captions  # what a tokenizer is trained on
from trainer.errors import UserError
from trainer.files import write_whole


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
    path = user_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, tokenizer.model)
    return tokenizer
