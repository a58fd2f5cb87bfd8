"""Shards at s3://: s3fs reads them from moto's server, through a network that is slow, fails and stalls."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.stores.bad_network import BadNetwork, Cut, Fault, Slow, Stall
from tests.stores.environment import add_stores, needs_stores
from tests.trainer.data.shards_on_disk import small_tokenizer, write_shards
from trainer.config.schema import DataConfig
from trainer.data.loader import training_loader
from trainer.data.shards.opening import Remote, open_shard
from trainer.data.shards.patterns import list_shards
from trainer.data.shards.remote import persistent, store
from trainer.data.shards.remote.cache import ShardCache
from trainer.data.shards.remote.store import file_system
from trainer.data.shards.samples import read_samples
from trainer.errors import UserError

pytestmark = [pytest.mark.slow, needs_stores]
QUICK = Remote(timeout=1.0, tries=4)
PART = 4000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, list[str]]]:
    """The port of an S3 server, and the shards, on disk, that are in its bucket `pairs`, in set/, and set/ in turn in deep/."""
    add_stores()
    import boto3
    from moto.server import ThreadedMotoServer

    shards = write_shards(tmp_path_factory.mktemp("shards"), 4, 12)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id="me",
        aws_secret_access_key="hush",
    )
    client.create_bucket(Bucket="pairs")
    for shard in shards:
        client.upload_file(shard, "pairs", f"set/{Path(shard).name}")
        client.upload_file(shard, "pairs", f"deep/set/train/{Path(shard).name}")
    yield int(port), shards
    moto.stop()


@pytest.fixture
def network(server: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[BadNetwork]:
    """The way to the server, as a user's environment says it, without waits between tries and with small parts."""
    monkeypatch.setattr(persistent, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(store, "FIRST_PART", PART)
    monkeypatch.setattr(store, "LARGEST_PART", PART)
    with BadNetwork(server[0]) as network:
        for name, value in {
            "AWS_ENDPOINT_URL": network.url,
            "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": "hush",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/nowhere",
            "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
            "no_proxy": "*",
        }.items():
            monkeypatch.setenv(name, value)
        _forget_clients()
        yield network
    _forget_clients()


def _forget_clients() -> None:
    from s3fs import S3FileSystem

    file_system.cache_clear()
    S3FileSystem.clear_instance_cache()


def content(server: tuple[int, list[str]], number: int = 0) -> bytes:
    return Path(server[1][number]).read_bytes()


def url(number: int = 0) -> str:
    return f"s3://pairs/set/train-{number:03}.tar"


def read(remote: Remote = QUICK) -> bytes:
    with open_shard(url(), remote) as stream:
        return stream.read()


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [500, None, 503, 503],
        [None, Cut(3000), Cut(0), Cut(10)],
        [Stall(), None, Stall(100)],
        [Slow(500)] * 4,
        [503, Cut(1), Stall(7), Slow(1000), Cut(3999)],
    ],
    ids=["well", "errors", "resets", "stalls", "slow", "all of it"],
)
@pytest.mark.parametrize("cached", [False, True], ids=["streamed", "cached"])
def test_what_passes_is_passed_over(
    server: tuple[int, list[str]], network: BadNetwork, faults: list[Fault], cached: bool, tmp_path: Path
) -> None:
    network.faults = list(faults)
    waits = any(isinstance(fault, Stall) for fault in faults)
    remote = Remote(timeout=1.0 if waits else 20.0, tries=9, cache=ShardCache(str(tmp_path), 1 << 20) if cached else None)
    assert read(remote) == content(server)
    assert network.faults == []
    failed = sum(not (fault is None or isinstance(fault, Slow)) for fault in faults)
    parts, asked = -(-len(content(server)) // PART), len(network.asked)
    # On a machine that is busy, what does not stall may seem to.
    assert asked >= parts + failed if waits else asked == parts + failed, "a part that failed is asked for again, nothing else"
    if cached:
        assert read(remote) == content(server)
        assert len(network.asked) == asked, "the second reading asks for no part at all"


@pytest.mark.parametrize(
    ("shard", "faults", "told"),
    [
        ("s3://pairs/set/nothing.tar", [], r"^no such file or folder \(HTTP 404\)$"),
        ("s3://nowhere/a.tar", [], r"^no such file or folder \(HTTP 404\)$"),
        (url(), [403], r"^access is denied \(AccessDenied\): set AWS_PROFILE, or AWS_ACCESS_KEY_ID and .*$"),
        (url(), [None, 403], r"^access is denied .* after 4000 bytes$"),
        (url(), [500] * 9, r"^HTTP 500 \(InternalError\) \(tried 4 times\)$"),
        (url(), [None, *[Cut(10)] * 9], r" after 4000 bytes \(tried 4 times\)$"),
        (url(), [Stall()] * 9, r"^no data came in time .* \(tried 4 times\)$"),
    ],
)
def test_what_does_not_pass_ends_the_shard_with_a_line(
    network: BadNetwork, shard: str, faults: list[Fault], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    network.faults = list(faults)
    *_, last = read_samples(shard, replace(QUICK, timeout=0.3))
    assert re.search(told, last.broken), last.broken
    assert "hush" not in caplog.text


def test_no_credentials_are_told_with_what_to_do(network: BadNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (sample,) = read_samples(url(), QUICK)
    assert sample.broken.startswith("no credentials (Unable to locate credentials): set AWS_PROFILE")
    with pytest.raises(UserError, match=r"^data.train=s3://pairs/set/: s3://pairs/set: no credentials .*FSSPEC_S3_ANON=true"):
        list_shards("s3://pairs/set/", "data.train")


def test_folders_wildcards_and_braces(network: BadNetwork) -> None:
    shards = [url(number) for number in range(4)]
    for pattern in (
        "s3://pairs/set/",
        "s3://pairs/set",
        "s3://pairs/set/*.tar",
        "s3://pairs/se?",
        url().replace("000", "{000..003}"),
    ):
        assert list_shards(pattern, "data.train") == shards, pattern
    assert list_shards("s3://pairs/deep/*", "data.train") == [shard.replace("set/", "deep/set/train/") for shard in shards]
    with pytest.raises(UserError, match=r"data.train=s3://pairs/other/: s3://pairs/other: no such file or folder"):
        list_shards("s3://pairs/other/", "data.train")


def batches(shards: list[str], tmp_path: Path, data: DataConfig) -> list[tuple[list[str], torch.Tensor, torch.Tensor]]:
    """The ids, without the folder, and the tensors of six batches of 8."""
    loader = training_loader(
        data,
        shards=shards,
        tokenizer=small_tokenizer(tmp_path),
        image_size=16,
        text_length=12,
        batch_size=8,
        rank=0,
        world=1,
        seed=3,
    )
    try:
        found = [next(loader) for _ in range(6)]
    finally:
        loader.close()
    return [([name.partition("train-")[2] for name in batch.ids], batch.images, batch.texts) for batch in found]


@pytest.mark.parametrize(
    ("workers", "faults"),
    [(0, [None, 503, Cut(100), Stall(5), None, 500, Cut(0), Slow(1000)]), (2, [503])],
    ids=["in the training process", "in workers"],
)
def test_a_training_gets_the_same_pairs_in_the_same_order_whatever_the_network_does(
    server: tuple[int, list[str]], network: BadNetwork, tmp_path: Path, workers: int, faults: list[Fault]
) -> None:
    data = DataConfig(workers=workers, shuffle_buffer=6, streams=4, remote_timeout=1.0, remote_tries=12)
    expected = batches(server[1], tmp_path, replace(data, workers=0))
    network.faults = list(faults)
    kept = replace(data, shard_cache=str(tmp_path / "kept"), shard_cache_gib=1e-4)
    found = batches([url(number) for number in range(4)], tmp_path, kept)
    assert network.faults == []
    for (ids, images, texts), (other_ids, other_images, other_texts) in zip(found, expected, strict=True):
        assert ids == other_ids
        assert torch.equal(images, other_images)
        assert torch.equal(texts, other_texts)
    assert 0 < sum(file.stat().st_size for file in (tmp_path / "kept").iterdir() if file.is_file()) <= 1e-4 * 2**30
