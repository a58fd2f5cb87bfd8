"""No secret in what is written or shown."""

import logging
from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from model.errors import UserError
from model.secrets import cleared
from trainer.config.compose import load_config
from trainer.config.schema import Config
from trainer.reporting.log_lines import log_to_file
from trainer.training.changes import differing
from trainer.training.directory import _write_config

SECRET = "https://me:hush@x.example/{0..9}.tar"
SIGNED = "https://x.example/0.tar?X-Amz-Credential=hush&X-Amz-Signature=hush"


def test_an_error_about_an_address_holds_no_secret() -> None:
    assert str(UserError(f"data.train={SECRET}: no shards match; {SIGNED}")) == (
        "data.train=https://x.example/{0..9}.tar: no shards match; https://x.example/0.tar"
    )


def test_a_log_holds_none(tmp_path: Path) -> None:
    with log_to_file(tmp_path, rank=0):
        logging.getLogger("of a package").warning("cannot read %s", SIGNED)
    assert "cannot read https://x.example/0.tar\n" in (tmp_path / "train.log").read_text()


def test_a_stored_configuration_holds_none_and_a_resume_sees_no_change(tmp_path: Path) -> None:
    config = Config()
    config.data.train, config.eval.suite = [SECRET, SIGNED], {"pets": SECRET}
    _write_config(config, tmp_path)
    assert "hush" not in (tmp_path / "config.yaml").read_text()
    stored = load_config(tmp_path / "config.yaml")
    assert stored.data.train == ["https://x.example/{0..9}.tar", "https://x.example/0.tar"]
    config.data.train[1] = SIGNED.replace("Signature=hush", "Signature=another")
    assert "data.train" not in differing(stored, config)
    assert "hush" not in str(cleared(asdict(config)))


def test_a_configuration_without_secrets_is_stored_as_it_is(tmp_path: Path) -> None:
    _write_config(Config(), tmp_path)
    assert OmegaConf.to_yaml(OmegaConf.structured(Config())) == (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize("plain", [None, 3, 0.5, True, "s3://bucket/a.tar", ["/x", {"a": None}]])
def test_other_values_stay(plain: object) -> None:
    assert cleared(plain) == plain
