"""What a resume changes is told in one line."""

from functools import reduce
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from trainer.checkpoint.files import CONFIG
from trainer.config.schema import Config
from trainer.training.changes import SHOWN, tell_changes


def changed(**values: object) -> Config:
    config = Config()
    for name, value in values.items():
        owner, _, leaf = name.rpartition("__")
        setattr(reduce(getattr, owner.split("__"), config) if owner else config, leaf, value)
    return config


def told(folder: Path, before: Config, now: Config, caplog: pytest.LogCaptureFixture) -> list[str]:
    checkpoint = folder / "step-00000010"
    checkpoint.mkdir()
    (checkpoint / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(before)))
    tell_changes(now, checkpoint)
    return [record.getMessage() for record in caplog.records]


def test_every_key_that_differs_is_told_with_both_values(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    before = changed(optim__lr=0.001, train__compile=False, data__crop_scale=[0.6, 1.0], eval__zeroshot={"a": "/x"})
    now = changed(optim__lr=0.0005, train__compile=True, data__crop_scale=[0.5, 1.0], eval__zeroshot=None)
    assert told(tmp_path, before, now, caplog) == [
        "resuming from step-00000010 with another configuration: data.crop_scale: [0.6, 1.0] -> [0.5, 1.0], "
        "train.compile: false -> true, optim.lr: 0.001 -> 0.0005, eval.zeroshot: {'a': '/x'} -> null"
    ]


def test_of_named_sources_only_what_differs_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    before = changed(data__train={"a": {"shards": "/x", "weight": 1}, "b": "/y"})
    now = changed(data__train={"a": {"shards": "/x", "weight": 2}, "c": "/z"})
    (line,) = told(tmp_path, before, now, caplog)
    assert line.endswith("data.train.a.weight: 1 -> 2, data.train.b: /y -> null, data.train.c: null -> /z")


def test_where_it_lies_and_how_it_is_shown_cannot_matter(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    before = changed(run__dir="/x", resume="never", init_from="/y")
    assert (
        told(
            tmp_path,
            before,
            changed(
                run__dir="/z",
                log__progress="none",
                log__tags=["a"],
                run__dry=True,
                log__every_images=5,
                log__alerts__records=3,
                log__report=False,
                train__profile="3:4",
                init_blocks=[0],
            ),
            caplog,
        )
        == []
    )


def test_a_long_list_is_cut_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    names = [*("width", "mlp", "heads", "layers", "experts", "image_size", "patch", "text_length", "vocabulary", "embedding")]
    many = {f"model__{name}": 7 for name in names} | {"optim__lr": 7.0, "optim__eps": 7.0, "seed": 7, "train__steps": 7}
    (line,) = told(tmp_path, Config(), changed(**many), caplog)
    assert line.count(" -> ") == SHOWN
    assert line.endswith(f", and {len(many) - SHOWN} more")


def test_a_key_that_was_not_there_then_had_its_default(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    checkpoint = tmp_path / "step-00000010"
    checkpoint.mkdir()
    (checkpoint / CONFIG).write_text("seed: 3\nno_longer: {there: 1}\n")
    tell_changes(changed(seed=3, optim__lr=0.5), checkpoint)
    (record,) = caplog.records
    assert record.getMessage().endswith("another configuration: optim.lr: 0.001 -> 0.5")


@pytest.mark.parametrize(
    ("accumulate", "now", "told"),
    [
        (2, {}, "train.negatives: micro -> batch"),
        (2, {"train__negatives": "micro"}, None),
        (1, {"train__accumulate": 1}, None),
        (1, {"train__accumulate": 2}, "train.accumulate: 1 -> 2"),
    ],
)
def test_micro_batches_were_batches_of_their_own_before_there_was_a_key(
    accumulate: int, now: dict[str, object], told: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    checkpoint = tmp_path / "step-00000010"
    checkpoint.mkdir()
    (checkpoint / CONFIG).write_text(f"train: {{accumulate: {accumulate}}}\n")
    tell_changes(changed(**{"train__accumulate": accumulate} | now), checkpoint)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ([f"resuming from step-00000010 with another configuration: {told}"] if told else [])


def test_an_average_that_ends_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    first, second = told(tmp_path, changed(train__ema=0.99), Config(), caplog)
    assert first.endswith("train.ema: 0.99 -> null")
    assert second.startswith("train.ema is off, but step-00000010 has a moving average")
    assert second.endswith("train.ema=0.99 keeps it")
