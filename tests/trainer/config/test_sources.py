"""Named sources: what can be said of them on a command line, and one line for whatever is wrong."""

from typing import Any

import pytest

from trainer.config.compose import compose_config
from trainer.config.sources import MOST_SOURCES, SourceOptions, read_sources
from trainer.errors import UserError

IN_THE_ISSUE = (
    "data.train={cc12m: {shards: /x/a-{000..999}.tar, weight: 2}, coco: {shards: [/y/{0..3}.tar,/z], epochs: 4, "
    "captions: {caption: 0.5, recaption: 0.5}, min_side: 64}}"
)


def test_sources_are_typed_as_they_are_thought_of() -> None:
    cc12m, coco = read_sources(compose_config([IN_THE_ISSUE]).data.train)
    assert cc12m == SourceOptions("cc12m", "data.train.cc12m", "/x/a-{000..999}.tar", weight=2.0)
    assert coco == SourceOptions(
        "coco",
        "data.train.coco",
        ["/y/{0..3}.tar", "/z"],
        weight=None,
        epochs=4.0,
        captions=(("caption", 0.5), ("recaption", 0.5)),
        min_side=64,
    )


@pytest.mark.parametrize("train", ["/x/{0..3}.tar", ["/x.tar", "/y.tar"], None])
def test_what_names_no_source_is_one(train: Any) -> None:
    assert read_sources(train) == [SourceOptions("", "data.train", train)]


def test_the_short_form_of_a_source_is_its_shards() -> None:
    a, b = read_sources(compose_config(["data.train={a: ~/x/{0..3}.tar, b: [/y.tar]}"]).data.train)
    assert a.shards.endswith("/x/{0..3}.tar")
    assert not a.shards.startswith("~")
    assert (a.weight, b.shards, b.weight) == (1.0, ["/y.tar"], 1.0)


def test_a_probability_may_be_rounded() -> None:
    (source,) = read_sources({"a": {"shards": "/x", "captions": {"one": 0.33, "two": 0.33, "txt": 0.33}}})
    assert [chance for _, chance in source.captions] == pytest.approx([1 / 3] * 3)
    assert sum(chance for _, chance in source.captions) == pytest.approx(1)


def of(**keys: Any) -> dict[str, Any]:
    return {"coco": {"shards": "/x.tar", **keys}}


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({}, "data.train names no source"),
        ({"shards": "/x", "weight": 2}, "has the keys of a source, but no name for it: write data.train={NAME: {shards: …}}"),
        ({"a b": "/x"}, "'a b' cannot be part of a metric's name"),
        ({1: "/x", "1": "/y"}, "data.train names '1' twice"),
        ({f"s{n}": "/x" for n in range(MOST_SOURCES + 1)}, "names 33 sources, but at most 32"),
        ({"coco": {"weight": 1}}, "data.train.coco.shards is not set"),
        ({"coco": None}, "data.train.coco.shards is not set"),
        ({"coco": 3}, "data.train.coco.shards=3: expected a shard pattern"),
        (of(wieght=2), "data.train.coco has no key 'wieght' (did you mean 'weight'?); a source has shards, weight, "),
        (of(weight=0), "data.train.coco.weight=0.0 must be above 0 (leave the source out to draw nothing from it)"),
        (of(weight=-1), "data.train.coco.weight=-1.0 must be above 0"),
        (of(weight=float("nan")), "data.train.coco.weight=nan must be above 0"),
        (of(weight="two"), "data.train.coco.weight=two: "),
        (of(epochs=0), "data.train.coco.epochs=0.0 must be above 0"),
        (of(weight=2, epochs=3), "data.train.coco has both weight=2 and epochs=3"),
        (of(pairs=0), "data.train.coco.pairs=0 must be at least 1"),
        (of(min_side=-1), "data.train.coco.min_side=-1 must be at least 0"),
        (of(min_length=1.5), "data.train.coco.min_length=1.5: "),
        (of(replacement="perhaps"), "data.train.coco.replacement=perhaps: "),
        (of(captions={}), "data.train.coco.captions={}: give a key of .json, txt, or several"),
        (of(captions=["a"]), "data.train.coco.captions=['a']: give a key of .json"),
        (of(captions={"a": -0.5, "b": 1.5}), "data.train.coco.captions.a=-0.5 must be a probability above 0"),
        (of(captions={"a": "much"}), "data.train.coco.captions.a=much must be a probability above 0"),
        (of(captions={"a": 0.5, "b": 0.3}), "the probabilities sum to 0.8, not 1: use {a:0.625,b:0.375}"),
        (of(captions={"a": 2, "b": 1}), "the probabilities sum to 3, not 1: use {a:0.667,b:0.333}"),
        (of(templates="/t"), "data.train.coco.templates=/t needs class names"),
        (of(classes="/c", captions="a"), "data.train.coco has both captions and classes"),
        (of(classes=""), "data.train.coco.classes must not be empty"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_source(train: Any, told: str) -> None:
    with pytest.raises(UserError) as caught:
        read_sources(train)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_proposed_works() -> None:
    with pytest.raises(UserError) as caught:
        read_sources(of(captions={"a": 0.7, "b": 0.7, "c": 0.7}))
    proposed = str(caught.value).partition("use {")[2].partition("}")[0]
    read_sources(of(captions={key: float(chance) for key, _, chance in (part.partition(":") for part in proposed.split(","))}))


@pytest.mark.parametrize(
    "argument", ["data.train={a: /x.tar, a: /y.tar}", "data.train={a: {shards: /x, weight: 1, weight: 2}, b: /y}"]
)
def test_a_name_that_stands_twice_is_refused_where_hydra_would_take_the_last(argument: str) -> None:
    with pytest.raises(UserError, match=r"names '(a|weight)' twice"):
        compose_config([argument])


@pytest.mark.parametrize(
    ("argument", "train"),
    [
        ("data.train=[/x/{000..999}.tar,/y/{a,b}.tar]", ["/x/{000..999}.tar", "/y/{a,b}.tar"]),
        ("data.train={a: /x/[0-9]*.tar}", {"a": "/x/[0-9]*.tar"}),
        ("data.train={a:{shards:https://h/{0..9}.tar},b:/y}", {"a": {"shards": "https://h/{0..9}.tar"}, "b": "/y"}),
        ("data.train={a: 'pipe:aws s3 cp s3://b/{0..9}.tar -'}", {"a": "pipe:aws s3 cp s3://b/{0..9}.tar -"}),
        ("data.train={a: pipe:aws s3 cp s3://b/{0..9}.tar -}", {"a": "pipe:aws s3 cp s3://b/{0..9}.tar -"}),
        ("data.train={ }", {}),
        ("data.train=[]", []),
    ],
)
def test_braces_of_a_pattern_are_no_mapping(argument: str, train: Any) -> None:
    assert compose_config([argument]).data.train == train


def test_brackets_that_do_not_match_are_told() -> None:
    with pytest.raises(UserError, match="cannot be parsed"):
        compose_config(["data.train={a: /x/{0..9.tar"])
