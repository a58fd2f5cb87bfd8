"""A SentencePiece vocabulary from captions, or one that was given."""

import gzip
import importlib.util
import io
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from model.hub_tokenizer import clip_tokenizer
from model.paths import user_path
from model.text import clean_text
from model.tokenizer import END, PADDING, UNKNOWN
from model.tokenizer import Tokenizer as Tokenizer
from trainer.data.shards.captions import training_captions as training_captions  # what a tokenizer is trained on
from trainer.errors import UserError, check_extra, reason
from trainer.files import write_whole

LEARNED_FROM = 4096  # characters of a caption: models do not read much further, and a few huge texts would outweigh all others
MOST_BYTES = 4  # of a character in UTF-8
SPECIAL = 3  # tokens: padding, unknown, end-of-text
SEPARATOR = "\u2585"  # SentencePiece leaves out every text that holds its own separator

CLIP = "clip"
"""What data.tokenizer says for the tokenizer of CLIP, which comes with open_clip."""
CLIP_MERGES = "bpe_simple_vocab_16e6.txt.gz"
CLIP_TOKENS = 49152 - 256 - 2  # as many merges are used, after a line that is none


def given_tokenizer(asked: str) -> Tokenizer:
    """What data.tokenizer names: a file, or CLIP's own. Raises UserError for anything else, and without the extra it needs."""
    if asked != CLIP:
        return Tokenizer.load(asked)
    check_extra("open_clip", "open-clip", f"data.tokenizer={CLIP} needs the vocabulary that comes with open_clip_torch")
    found = importlib.util.find_spec("open_clip")  # its import would take seconds
    places = found.submodule_search_locations if found else None
    path = Path(next(iter(places or ["open_clip"]))) / CLIP_MERGES
    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    except (OSError, EOFError, ValueError) as problem:
        raise UserError(
            f"data.tokenizer={CLIP}: {path} cannot be read ({reason(problem)}): install open_clip_torch again"
        ) from None
    return Tokenizer(clip_tokenizer(lines[1 : CLIP_TOKENS + 1]))


def train_tokenizer(captions: Iterable[str], path: str | Path, vocabulary: int, seed: int = 0) -> Tokenizer:
    """Train a SentencePiece model of at most `vocabulary` tokens on captions and write it to `path` atomically.

    It uses byte pair encoding (Sennrich et al. 2016). SentencePiece's unigram model takes its candidates from the distinct words,
    each counted once: in a data set with few of them, such as the embedded one, no single word would become a token.
    Texts are cleaned (model.text), normalised and lower-cased; only the first LEARNED_FROM characters of a long one count.
    Raises UserError when there are no captions, or `vocabulary` has no room for their characters.
    """
    lines = (clean_text(caption).replace(SEPARATOR, " ")[:LEARNED_FROM].strip() for caption in captions)
    sentences = [line for line in lines if line]
    if not sentences:
        raise UserError(
            "no captions to train a tokenizer on: set data.tokenizer, or set data.caption_key to the key of the captions"
        )
    trained = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=trained,
            model_type="bpe",
            vocab_size=vocabulary,
            hard_vocab_limit=False,
            max_sentence_length=MOST_BYTES * LEARNED_FROM,
            normalization_rule_name="nmt_nfkc_cf",
            byte_fallback=False,
            pad_id=PADDING,
            unk_id=UNKNOWN,
            eos_id=END,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, ValueError, TypeError) as problem:
        raise UserError(
            f"no tokenizer of model.vocabulary={vocabulary} can be trained on {len(sentences)} captions: "
            f"{_in_our_words(str(problem), vocabulary)}"
        ) from None
    tokenizer = Tokenizer(trained.getvalue())
    path = user_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, tokenizer.model)
    return tokenizer


def _in_our_words(told: str, vocabulary: int) -> str:
    """Replaces SentencePiece's messages, which name its own flags and lines of its source."""
    if characters := re.search(r"smaller than required_chars\. \d+ vs (\d+)", told):
        return f"the characters in them alone take {characters[1]} tokens; set model.vocabulary={2 * int(characters[1])} or more"
    if vocabulary <= SPECIAL:
        return "padding, unknown and end-of-text take three tokens; set a larger model.vocabulary"
    if "all_chars_count" in told or "sentences_.empty" in told:
        return "they contain no text; use others (data.train, data.caption_key) or set data.tokenizer"
    return f"{' '.join(told.split()).rpartition('] ')[2]}; set data.tokenizer to one that was trained elsewhere"
