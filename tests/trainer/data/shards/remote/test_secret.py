"""Addresses with secrets are opened as given and shown without."""

import copy
import json
import pickle

import pytest

from trainer.data.shards.remote.secret import SecretAddress, address_of, hide_secret, without_secrets

SIGNED = "https://bucket.example/a.tar?X-Amz-Algorithm=AWS4&X-Amz-Date=20261125&X-Amz-Credential=AKIA/x&X-Amz-Signature=beef"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (SIGNED, "https://bucket.example/a.tar"),
        ("https://x.example/get?id=1&token=hush&part=2", "https://x.example/get?id=1&part=2"),
        ("https://user:p@ss@x.example/a.tar", "https://x.example/a.tar"),
        ("https://hf_token@x.example/a.tar", "https://x.example/a.tar"),
        ("https://s.example/c/a.tar?sv=2022&se=2026&sr=b&sp=r&sig=abc%3D", "https://s.example/c/a.tar"),
        ("https://s.example/a?GoogleAccessId=me&Expires=17&Signature=abc", "https://s.example/a"),
        ("sftp://me:hush@x.example/a.tar", "sftp://x.example/a.tar"),
        ("pipe:curl 'https://u:hush@x.example/a.tar' | zcat", "pipe:curl 'https://x.example/a.tar' | zcat"),
    ],
)
def test_a_secret_is_not_in_the_name_but_in_the_address(given: str, shown: str) -> None:
    hidden = hide_secret(given)
    assert (hidden, f"{hidden}", address_of(hidden)) == (shown, shown, given)
    assert without_secrets(f"data.train={given} cannot be read") == f"data.train={shown} cannot be read"
    assert json.dumps({hidden: 1}) == json.dumps({shown: 1})
    for copied in (pickle.loads(pickle.dumps(hidden)), copy.deepcopy(hidden), hide_secret(hidden)):
        assert (copied, address_of(copied)) == (shown, given)


@pytest.mark.parametrize(
    "plain",
    [
        "/data/a@b:c.tar",
        "s3://bucket/a.tar",
        "hf://datasets/org/name@main/a.tar",
        "https://x.example/a.tar?id=1&expires=soon",
        "scp://me@x.example/a.tar",
        "pipe:aws s3 cp s3://bucket/a.tar -",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(plain: str) -> None:
    assert hide_secret(plain) is plain
    assert without_secrets(plain) == plain


def test_a_url_that_is_signed_anew_is_the_same_shard() -> None:
    again = SIGNED.replace("beef", "cafe").replace("20261125", "20261126")
    assert hide_secret(SIGNED) == hide_secret(again)
    assert isinstance(hide_secret(again), SecretAddress)
