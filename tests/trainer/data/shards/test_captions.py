"""Captions and labels out of whatever lies in a sample."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.data.shards_on_disk import jpeg, pair, write_shard, write_shards
from trainer.data.shards.captions import (
    CaptionRule,
    Labels,
    NoCaption,
    TooSmall,
    captions_of,
    check_captions,
    label_of,
    read_captions,
    require_pair,
    training_captions,
)
from trainer.data.shards.opening import Remote
from trainer.data.shards.samples import Sample, Unusable
from trainer.errors import UserError

DEFAULT, LINES = CaptionRule(), CaptionRule(lines=True)


def sample(**files: bytes) -> Sample:
    return Sample("shard", "key", files)


def test_captions() -> None:
    as_json = json.dumps({"caption": " one ", "all": ["two", "", None, "three"], "number": 4}).encode()
    assert read_captions(sample(txt=b" a  dog \n"), DEFAULT) == ["a dog"]
    assert read_captions(sample(json=as_json), DEFAULT) == ["one"]
    assert read_captions(sample(txt=b"other", json=as_json), CaptionRule("all")) == ["two", "three"]
    assert read_captions(sample(txt="a\ndog".encode("utf-16")), DEFAULT) == ["a dog"]
    assert read_captions(sample(**{"1.txt": b"a dog", "1.jpg": b"x"}), DEFAULT) == ["a dog"]


def test_a_text_file_is_one_caption_unless_lines_are_asked_for() -> None:
    several = sample(txt="Hündin\r\n\ncat\rone\u2028two\x0bthree\x0cfour\n".encode())
    assert read_captions(several, DEFAULT) == ["Hündin cat one two three four"]
    assert read_captions(several, CaptionRule(lines=False)) == ["Hündin cat one two three four"]
    assert read_captions(several, LINES) == ["Hündin", "cat", "one two three four"]


def test_in_the_layout_of_clip_benchmark_lines_are_captions(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    (theirs / "nshards.txt").write_text("1\n")
    text = {"txt": b"one\ntwo"}
    assert read_captions(Sample(str(ours / "0.tar"), "k", text), DEFAULT) == ["one two"]
    assert read_captions(Sample(str(theirs / "0.tar"), "k", text), DEFAULT) == ["one", "two"]
    assert read_captions(Sample(str(theirs / "0.tar"), "k", text), CaptionRule(lines=False)) == ["one two"]
    assert read_captions(Sample(f"pipe:cat {theirs}/0.tar | x\0", "k", text), DEFAULT) == ["one two"]


def test_a_caption_key_needs_no_json_where_there_is_txt() -> None:
    rule = CaptionRule("captions")
    assert read_captions(sample(txt=b"one\ntwo"), rule) == ["one two"]
    assert read_captions(sample(txt=b"one", json=b'{"captions": ["three"]}'), rule) == ["three"]
    assert captions_of(sample(txt=b"one", json=b'{"other": "four"}'), rule) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (rb'{"caption": "nice picture \ud83d"}', ["nice picture"]),
        (rb'{"caption": "\ude00\ud83d"}', "'caption' of its .json has no text"),
        (rb'{"caption": "a\u0000dog"}', ["a dog"]),
        (rb'{"caption": "first", "caption": "last"}', ["last"]),
        (b'{"caption": "a dog", "id": ' + b"9" * 5000 + b', "score": NaN}', ["a dog"]),
        ('{"caption": "a dog"}'.encode("utf-16"), ["a dog"]),
        (b'\xef\xbb\xbf{"caption": "a dog"}', ["a dog"]),
        (b'{"caption": "' + b"dog " * 1_000_000 + b'"}', ["dog " * 16383 + "dog"]),
        (b'{"caption": 4}', "'caption' of its .json is a number, not text"),
        (b'{"caption": NaN}', "'caption' of its .json is a number, not text"),
        (b'{"caption": null}', "'caption' of its .json is null, not text"),
        (b'{"caption": true}', "'caption' of its .json is true or false, not text"),
        (b'{"caption": {"raw": "a"}}', "'caption' of its .json is an object, not text"),
        (b'{"caption": [["a"], 4]}', "'caption' of its .json has no text"),
        (b'{"caption": " \\u200e "}', "'caption' of its .json has no text"),
        (b'{"text": "a", "url": "b"}', r"its .json has no 'caption' (its keys: 'text', 'url')"),
        (rb'{"\ud83d": "a"}', "its .json has no 'caption' (its keys: '')"),
        (b"[1]", "its .json is a list, not an object"),
        (b"3", "its .json is a number, not an object"),
        (b"{", "its .json is not JSON"),
        (b"", "its .json is not JSON"),
        (b"\xff\xfe\xff", "its .json is not JSON"),
        (b"[" * 100_000, "its .json is nested too deeply"),
        (b'{"caption": ' + b'{"a":' * 100_000, "its .json is nested too deeply"),
        (b'{"' + b"k" * 5000 + b'": 1}', "its .json has no 'caption' (its keys: '" + "k" * 40 + "')"),
    ],
)
def test_json_as_it_is_found(content: bytes, expected: list[str] | str) -> None:
    if isinstance(expected, list):
        assert read_captions(sample(json=content), DEFAULT) == expected
        return
    with pytest.raises(Unusable) as caught:
        read_captions(sample(json=content), DEFAULT)
    assert str(caught.value).startswith(expected)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"caf\xe9", "its .txt is not UTF-8 (byte 0xe9 at 3, perhaps Latin-1): convert it to UTF-8"),
        (b" \n ", "its .txt is empty"),
        ("\u200f\ufeff".encode(), "its .txt contains no visible characters"),
        (
            "a dog".encode("utf-16-le"),
            "its .txt contains NUL bytes, perhaps UTF-16 without a byte order mark: convert it to UTF-8",
        ),
    ],
)
def test_text_that_cannot_be_used_says_why(content: bytes, told: str) -> None:
    with pytest.raises(Unusable) as caught:
        read_captions(sample(txt=content), DEFAULT)
    assert str(caught.value) == told


caption_files = st.one_of(
    st.binary(max_size=60),
    st.text(st.characters(exclude_categories=()), max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["caption", "other"]), inner, max_size=2),
    ).map(lambda value: json.dumps(value).encode()),
)


@given(st.sampled_from(["txt", "json", "1.txt"]), caption_files, st.sampled_from([DEFAULT, LINES, CaptionRule("other")]))
def test_any_bytes_give_captions_or_unusable(extension: str, content: bytes, rule: CaptionRule) -> None:
    try:
        captions = read_captions(sample(**{extension: content}), rule)
    except Unusable as problem:
        assert captions_of(sample(**{extension: content}), rule) == []
        str(problem).encode()
        return
    assert captions
    for caption in captions:
        caption.encode()
        assert caption == caption.strip() != ""
        assert "\n" not in caption


def test_labels() -> None:
    assert label_of(sample(cls=b"7\n")) == 7
    assert label_of(sample()) == -1
    for content in (b"frog", b"-1", b"", b"9" * 5000, b"99999999999999999999", b"\xb2", b"1.5"):
        with pytest.raises(Unusable, match="not a class index"):
            label_of(sample(cls=content))


@given(st.binary(max_size=30))
def test_any_bytes_give_a_label_or_unusable(content: bytes) -> None:
    try:
        assert 0 <= label_of(sample(cls=content)) < 2**31
    except Unusable as problem:
        str(problem).encode()


def test_a_set_without_captions_is_told_at_the_start(tmp_path: Path) -> None:
    bare = write_shard(tmp_path / "bare.tar", [{"jpg": jpeg(1), "cls": 3, "json": {"text": "a"}}])
    good = write_shard(tmp_path / "good.tar", [pair(1)])
    check_captions([good, bare], DEFAULT)
    check_captions([bare], CaptionRule("text"))
    with pytest.raises(UserError, match=r"bare.tar: it contains .cls .jpg .json; .*no 'caption' .*'text'.*data.caption_key"):
        check_captions([bare, good], DEFAULT)
    with pytest.raises(UserError, match=r"data.caption_key=words"):
        check_captions([bare], CaptionRule("words"))
    empty = write_shard(tmp_path / "empty.tar", [])
    check_captions([empty, good], DEFAULT)
    with pytest.raises(UserError, match="no samples"):
        check_captions([empty], DEFAULT)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"txt": b"caf\xe9"}, r"it contains .jpg .txt; usually, its .txt is not UTF-8 .*: convert it to UTF-8$"),
        ({"txt": b""}, r"it contains .jpg .txt; usually, its .txt is empty$"),
        ({}, r"it contains .jpg; add .txt files, or set data.caption_key"),
        ({"json": b"{"}, r"it contains .jpg .json; usually, its .json is not JSON"),
        ({"a.txt": b"a", "b.txt": b"b"}, r"it contains .a.txt .b.txt .jpg; the first dot of a name ends its key"),
    ],
)
def test_the_start_says_what_it_found(tmp_path: Path, fields: dict[str, bytes], told: str) -> None:
    shard = write_shard(tmp_path / "a.tar", [{"jpg": jpeg(number), **fields} for number in range(3)])
    with pytest.raises(UserError, match=told) as caught:
        check_captions([shard], DEFAULT)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_lie_side_by_side_are_told(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for extension in ("jpg", "txt"):
            for number in range(300):
                member = tarfile.TarInfo(f"{number:04}.{extension}")
                member.size = 1
                archive.addfile(member, BytesIO(b"x"))
    with pytest.raises(
        UserError, match=r"it contains .jpg, but the files of a sample, such as 0000, are not next to each other.*--sort"
    ):
        check_captions([str(tmp_path / "a.tar")], DEFAULT)


def test_training_captions_are_bounded_and_spread(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, 4, 5)
    captions = list(training_captions(shards, DEFAULT, 8))
    assert captions == [pair(shard * 5 + index)["txt"] for shard in range(4) for index in range(2)]
    assert captions == list(training_captions(shards, DEFAULT, 8))
    assert len(list(training_captions(shards, DEFAULT, 1000))) == 20
    short = write_shard(tmp_path / "short.tar", [pair(0)])
    assert len(list(training_captions([short, shards[0]], DEFAULT, 6))) == 6


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            b'{"caption": {"en": "a dog", "de": "ein Hund"}}',
            "is an object, not text; data.caption_key names a text",
        ),
        (b'["a dog"]', 'is a list, not an object; write {"caption": "what it shows"} there'),
        (b"3", 'is a number, not an object; write {"caption": "what it shows"} there'),
    ],
)
def test_what_no_caption_key_can_mend_is_not_told_to_set_one(tmp_path: Path, content: bytes, told: str) -> None:
    shard = write_shard(tmp_path / "a.tar", [{"jpg": jpeg(1), "json": content}])
    for rule in (DEFAULT, CaptionRule("caption")):
        with pytest.raises(UserError) as raised:
            check_captions([shard], rule)
        assert told in str(raised.value)
        assert "set " not in str(raised.value)


def test_captions_are_waited_for_as_long_as_the_configuration_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trainer.data.shards.remote.persistent.FIRST_WAIT", 0.001)
    with pytest.raises(UserError, match="no samples"):
        check_captions(["pipe:sleep 601"], DEFAULT, Remote(timeout=0.2, tries=2))
    assert not list(training_captions(["pipe:sleep 602"], DEFAULT, 10, Remote(timeout=0.2, tries=2)))
    for number in (601, 602):
        assert f"pipe:sleep {number}: the shard ends early: the command wrote nothing for 0.2 s (tried 2 times)" in caplog.text


def test_captions_of_a_source_have_the_probability_of_their_key() -> None:
    files = {"jpg": jpeg(1), "txt": b"one", "json": json.dumps({"more": ["two", "three"], "no": 3}).encode()}
    rule = CaptionRule(chances=(("txt", 0.2), ("more", 0.5), ("no", 0.2), ("nor", 0.1)))
    assert require_pair(sample(**files), rule)[1:] == (["one", "two", "three"], [0.2, 0.25, 0.25]), (
        "what is missing counts for nothing"
    )
    assert require_pair(sample(**files), CaptionRule(chances=(("more", 1.0),)))[1:] == (["two", "three"], None)
    with pytest.raises(NoCaption, match=r"'no' of its \.json is a number, not text"):
        require_pair(sample(**files), CaptionRule(chances=(("no", 0.5), ("nor", 0.5))))
    with pytest.raises(NoCaption, match=r"no \.json: it contains \.jpg \.txt"):
        require_pair(sample(jpg=jpeg(1), txt=b"one"), CaptionRule(chances=(("more", 1.0),)))


def test_captions_come_from_class_names_and_prompts() -> None:
    rule = CaptionRule(labels=Labels(["cat", "{dog}"], ["a {c}.", "{c} {0}"]))
    labelled = sample(jpg=jpeg(1), cls=b"1", txt=b"not this")
    assert require_pair(labelled, rule)[1] == ("a {dog}.", "{dog} {0}")
    assert require_pair(labelled, rule)[1] is require_pair(labelled, rule)[1], "one object for each class, tokenized once"
    with pytest.raises(NoCaption, match=r"its \.cls is 2, but there are 2 class names, from 0"):
        require_pair(sample(jpg=jpeg(1), cls=b"2"), rule)
    with pytest.raises(NoCaption, match=r"it has no \.cls"):
        require_pair(sample(jpg=jpeg(1), txt=b"one"), rule)
    assert list(training_captions(["/no/shard.tar"], rule, 5)) == ["a cat.", "a {dog}.", "cat {0}", "{dog} {0}", "a cat."]


def test_what_is_smaller_than_a_source_wants_is_left_out() -> None:
    rule = CaptionRule(chances=(("txt", 0.5), ("more", 0.5)), min_side=20, min_length=4)
    files = {"txt": b"one", "json": b'{"more": ["three", "four"]}'}
    assert require_pair(sample(jpg=jpeg(1, 24, 20), **files), rule)[1:] == (["three", "four"], [0.25, 0.25])
    with pytest.raises(TooSmall, match="19 pixels on the shorter side, fewer than min_side=20"):
        require_pair(sample(jpg=jpeg(1, 19, 30), **files), rule)
    with pytest.raises(TooSmall, match="its caption 'one' has fewer characters than min_length=4"):
        require_pair(sample(jpg=jpeg(1, 24, 20), txt=b"one"), rule)
    assert require_pair(sample(jpg=b"damaged", **files), rule)[0] == b"damaged", "decoding will say what is wrong with it"
