"""The tokenizer."""

import io
import pickle
import random
import re
from pathlib import Path

import pytest
import sentencepiece

from model.config import ModelConfig
from trainer.data.shapes.simple import training_scene
from trainer.data.tokenizer import END, PADDING, UNKNOWN, Tokenizer, train_tokenizer
from trainer.errors import UserError

CAPTIONS = [
    f"a {size} {colour} {shape}" for size in ("small", "large") for colour in ("red", "green") for shape in ("ring", "star")
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(CAPTIONS, tmp_path_factory.mktemp("tokenizer") / "folder" / "t.model", 100)


def test_round_trip_in_lower_case(tokenizer: Tokenizer) -> None:
    ids = tokenizer(["A Small  RED ring", "a large green star"], 24)
    assert [tokenizer.decode(row.tolist()) for row in ids] == ["a small red ring", "a large green star"]
    assert int(ids.max()) < tokenizer.vocabulary <= 100


def test_texts_end_with_the_end_token_and_are_padded_with_zero(tokenizer: Tokenizer) -> None:
    ids = tokenizer(["a red ring", "", "a small green star"], 16)
    assert ids.shape == (3, 16)
    for row in ids.tolist():
        end = row.index(END)
        assert PADDING not in row[:end]
        assert set(row[end + 1 :]) <= {PADDING}
    assert ids[1, 0] == END


def test_truncation_keeps_the_end_token(tokenizer: Tokenizer) -> None:
    whole, cut = tokenizer(["a small green star"], 30)[0].tolist(), tokenizer(["a small green star"], 4)[0].tolist()
    assert cut == [*whole[:3], END]
    assert tokenizer([], 4).shape == (0, 4)


def test_it_survives_pickling_and_the_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    expected = tokenizer(CAPTIONS, 12).tolist()
    assert pickle.loads(pickle.dumps(tokenizer))(CAPTIONS, 12).tolist() == expected
    path = tmp_path / "t.model"
    train_tokenizer(CAPTIONS, path, 100)
    assert Tokenizer.load(path)(CAPTIONS, 12).tolist() == expected  # the same captions give the same tokenizer
    assert [file.name for file in tmp_path.iterdir()] == ["t.model"]


def test_no_token_of_a_model_trained_elsewhere_is_taken_for_padding(tmp_path: Path) -> None:
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_writer=trained, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    elsewhere = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    assert (elsewhere.unk_id(), elsewhere.pad_id()) == (0, -1)  # sentencepiece's defaults
    (tmp_path / "theirs.model").write_bytes(trained.getvalue())
    tokenizer = Tokenizer.load(tmp_path / "theirs.model")
    assert tokenizer.vocabulary == elsewhere.vocab_size() + 1
    caption = "a red \u661f"
    assert elsewhere.unk_id() in elsewhere.encode(caption)
    ids = tokenizer([caption, "a small green star"], 30).tolist()
    assert [[token for token in row if token != PADDING] for row in ids] == [
        [token + 1 for token in [*elsewhere.encode(text), elsewhere.eos_id()]] for text in (caption, "a small green star")
    ]
    assert tokenizer.decode(ids[1]) == "a small green star"


def test_errors(tmp_path: Path) -> None:
    (tmp_path / "wrong.model").write_bytes(b"no model at all")
    (tmp_path / "empty.model").write_bytes(b"")
    for name in ("missing.model", "wrong.model", "empty.model"):
        with pytest.raises(UserError, match=name):
            Tokenizer.load(tmp_path / name)
    with pytest.raises(UserError, match="no captions"):
        train_tokenizer(["", "  "], tmp_path / "t.model", 100)


@pytest.mark.parametrize(
    ("captions", "vocabulary", "told"),
    [
        (CAPTIONS, 5, r"model.vocabulary=5 can.* on 8 captions: the characters in them alone take 15 tokens; set model.vocab"),
        (CAPTIONS, 2, r"padding, unknown and end-of-text take three tokens; set a larger model.vocabulary"),
        (CAPTIONS, 0, r"set a larger model.vocabulary"),
        (CAPTIONS, -3, r"set a larger model.vocabulary"),
        (["\u200c"], 100, r"they contain no text; use others \(data.train, data.caption_key\) or set data.tokenizer"),
        (["\u2585\u2585", "\ud83d"], 100, r"no captions to train a tokenizer on"),
    ],
)
def test_what_keeps_a_tokenizer_from_being_trained_is_told_in_our_words(
    tmp_path: Path, captions: list[str], vocabulary: int, told: str
) -> None:
    with pytest.raises(UserError, match=told) as caught:
        train_tokenizer(captions, tmp_path / "t.model", vocabulary)
    for foreign in ("--", ".cc", "character_coverage", "vocab_size", "\n"):
        assert foreign not in str(caught.value)


def test_the_proposed_vocabulary_is_large_enough(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        train_tokenizer(CAPTIONS, tmp_path / "t.model", 5)
    proposed = re.search(r"model.vocabulary=(\d+) or more", str(caught.value))
    assert proposed
    assert train_tokenizer(CAPTIONS, tmp_path / "t.model", int(proposed[1])).vocabulary <= int(proposed[1])


@pytest.mark.parametrize("caption", ["wombat " * 2000, "wombat \u2585 quokka", "wombat \ud83d", "wombat\0quokka"])
def test_no_caption_is_left_out_in_silence(tmp_path: Path, caption: str) -> None:
    tokenizer = train_tokenizer([*CAPTIONS, caption], tmp_path / "t.model", 100)
    ids = tokenizer(["wombat"], 30)[0].tolist()
    assert UNKNOWN not in ids


def test_the_words_of_a_small_data_set_become_tokens(tmp_path: Path):
    rng = random.Random(0)
    captions = [training_scene(rng).caption for _ in range(2000)]
    tokenizer = train_tokenizer(captions, tmp_path / "t.model", ModelConfig().vocabulary)
    assert len(tokenizer.encode(["a red circle"], 16).ids[0].nonzero()) == 4
    assert max(tokenizer.encode(captions, 16).counts) <= ModelConfig().text_length, "a caption of the demo is cut"


def test_every_token_is_told_the_whole_word_that_it_is_a_piece_of(tmp_path: Path):
    tokenizer = train_tokenizer(["red dogs, red cats", "a don't"] * 9, tmp_path / "t.model", 60)
    text = "Red dogs,  zebras! -- (don't) 42"
    words = tokenizer.words(text, 50)
    ids, (count,) = tokenizer.encode([text], 50).ids[0].tolist(), tokenizer.encode([text], 50).counts
    assert len(words) == count - 1, "one for each token but the end of the text"
    assert list(dict.fromkeys(piece.word for piece in words)) == ["red", "dogs", "zebras", "--", "don't", "42"]
    for word in {piece.word for piece in words}:
        pieces = [place for place, piece in enumerate(words) if piece.word == word]
        assert {piece.pieces for piece in words if piece.word == word} == {len(pieces)}
        assert word in tokenizer.decode([ids[place] for place in pieces]) or UNKNOWN in (ids[place] for place in pieces)
    # What the length cuts off a word does not shorten its name.
    cut = next(place for place, piece in enumerate(words) if piece.word == "zebras") + 1
    assert [piece.word for piece in tokenizer.words(text, cut + 1)][-1] == "zebras"
    assert tokenizer.words("", 5) == []


def test_the_pieces_are_the_text_cut_where_the_tokens_are(tmp_path: Path):
    tokenizer = train_tokenizer(["a zebra", "two zebras"] * 50, tmp_path / "t.model", 40)
    text = "Two  zebras 数"
    pieces = tokenizer.pieces(text, 50)
    assert "".join(pieces) == "▁two▁zebras▁数", "what is unknown, as it was"
    ids = tokenizer([text], 50)[0].tolist()
    assert len(pieces) == ids.index(0) - 1 == len(tokenizer.words(text, 50))
    assert tokenizer.pieces(text, 4) == pieces[:3] and tokenizer.pieces("", 5) == []
