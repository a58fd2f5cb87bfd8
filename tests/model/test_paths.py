"""The one rule for paths that a user types."""

from pathlib import Path

import pytest

from model.errors import UserError
from model.paths import expand, user_path


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("NOWHERE", raising=False)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("~", "/home/me"),
        ("~/x/", "/home/me/x"),
        ("~root/x", "/root/x"),
        ("$SCRATCH/a//b", "/scratch/me/a/b"),
        ("${SCRATCH}/x-{000..003}.tar", "/scratch/me/x-{000..003}.tar"),
        ("file:///x/y", "/x/y"),
        ("file://localhost/x/y", "/x/y"),
        ("file:~/x", "/home/me/x"),
        (" x ", "x"),
        ("./x/", "x"),
        ("x/../y", "x/../y"),
        ("./~x", "./~x"),
        ("/x/{a,b}/*.tar", "/x/{a,b}/*.tar"),
        ("pipe:aws s3 cp $X/~ -", "pipe:aws s3 cp $X/~ -"),
        ("s3://bucket//x/", "s3://bucket//x/"),
        ("https://host/$X?a=~b", "https://host/$X?a=~b"),
        ("", ""),
    ],
)
def test_a_path_means_what_a_shell_would_make_of_it(typed: str, meant: str):
    assert expand(typed) == meant
    assert expand(meant) == meant, "what is written into config.yaml is read again"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("~no-such-user/x", "run.dir=~no-such-user/x: the home directory of '~no-such-user' is unknown"),
        ("$NOWHERE/x", "run.dir=$NOWHERE/x: the environment variable $NOWHERE is not set"),
        ("/a/${NOWHERE}", "the environment variable $NOWHERE is not set"),
    ],
)
def test_what_there_is_not_is_told_with_the_key(typed: str, told: str):
    with pytest.raises(UserError) as caught:
        expand(typed, "run.dir")
    assert told in str(caught.value)


def test_a_path_object_is_read_alike():
    assert user_path(Path("~/x")) == Path("/home/me/x")


@pytest.mark.parametrize("text", ["s3://bucket/run", "pipe:cat x", "https://host/x"])
def test_where_only_a_path_will_do_a_url_is_refused(text: str):
    with pytest.raises(UserError, match=f"run={text}: a path is needed here"):
        user_path(text, "run")
    assert user_path("file:///x/y") == Path("/x/y")
