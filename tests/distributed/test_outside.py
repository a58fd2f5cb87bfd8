"""A run that starts from a CLIP of elsewhere: trained under ZeRO-3, continued, exported and loaded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import model
from tests.distributed.test_runs import in_forks
from tests.model.clip import random_clip
from tests.trainer.data.shards_on_disk import small_tokenizer
from trainer.export.__main__ import main as export

pytestmark = pytest.mark.slow

CLIP = [
    "model.name=clip",
    *("model.towers=2", "model.width=32", "model.mlp=40", "model.heads=4", "model.layers=3", "model.expert_layers=[]"),
    *("model.text_width=24", "model.text_mlp=48", "model.text_heads=3", "model.text_layers=2", "model.text_length=7"),
    *("model.image_size=16", "model.patch=4", "model.embedding=20", "model.vocabulary=200"),
    *("model.pool=token", "model.text_mask=causal", "model.image_norm=true"),
    *("router.noise=0", "data.workers=0", "optim.layer_decay=0.5", "schedule.warmup_steps=1"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the embedded data set is written."""
    return tmp_path_factory.mktemp("cache")


def test_it_trains_in_any_layout_continues_and_is_loaded(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "CLIP" / "open_clip_model.safetensors"
    file.parent.mkdir()
    save_file(random_clip().state_dict(), file)
    small_tokenizer(tmp_path)
    start = [*CLIP, f"init_from={file.parent}", f"data.tokenizer={tmp_path / 't.model'}"]

    alone = in_forks(1, tmp_path / "alone", cache, *start, "train.steps=3")
    several = in_forks(2, tmp_path / "several", cache, *start, "train.steps=2", "parallel.zero_stage=3")
    file.unlink()
    several = in_forks(2, tmp_path / "several", cache, *start, "train.steps=3", "parallel.zero_stage=2")

    assert several == pytest.approx(alone, rel=1e-4)
    monkeypatch.setattr("sys.argv", ["export", f"run={tmp_path / 'alone'}"])
    export()
    loaded = model.load(tmp_path / "alone" / "export")
    assert loaded.module.config.text_tower.width == 24
    assert loaded.embed_texts(["red", "a blue circle"]).shape == (2, 20)
    assert torch.isfinite(loaded.embed_images([torch.zeros(20, 20, 3, dtype=torch.uint8).numpy()])).all()
