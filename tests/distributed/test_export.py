"""What several ranks trained embeds alike when it is evaluated there, and when it was exported and loaded by one process."""

import io
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

import model
from model.limoe import LIMoE
from model.tokenizer import Tokenizer
from tests.distributed.setups import Layout, TinyRun, tiny
from tests.distributed.spawn import run_distributed
from tests.trainer.data.shards_on_disk import jpeg, write_shard
from trainer.checkpoint.files import CONFIG, TOKENIZER, checkpoint_path
from trainer.checkpoint.load import load_state
from trainer.data.evaluation import evaluation_batches
from trainer.data.tokenizer import train_tokenizer
from trainer.distributed.device import dtype_of
from trainer.distributed.processes import Processes
from trainer.engine.state import EMA, WEIGHTS, ExpertSharding, set_weights
from trainer.evaluation.encoder import ModelEncoder
from trainer.export.request import read_arguments
from trainer.export.write import write_export

pytestmark = pytest.mark.slow

# Some are so large that evaluation decodes them at a part of their size.
IMAGES = [jpeg(number, 30 + 90 * number, 40 + 50 * number) for number in range(6)]
TEXTS = [f"picture number {number} of a set that is small" for number in range(6)] + ["", "small"]


def train_and_embed(processes: Processes, layout: Layout, run_dir: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Train two steps and save; then by kind of weights what trainer.evaluate's encoder makes of the images and texts."""
    run = TinyRun(tiny(layout), processes)
    run.step()
    run.step()
    checkpoint = run.save(run_dir)
    config, embedded = run.config, {}
    shard = str(run_dir / "val.tar")
    size = config.model.image_size
    batches = evaluation_batches(config.data, shards=[shard], image_size=size, batch_size=8, rank=0, world=1, workers=0)
    pixels = torch.cat([batch.images[batch.valid] for batch in batches])
    tokens = Tokenizer.load(checkpoint / TOKENIZER)(TEXTS, config.model.text_length)
    for kind in (WEIGHTS, EMA):
        limoe = LIMoE(config.model, config.router, run.peers)
        sharding = ExpertSharding(processes, config.parallel.expert_parallel)
        set_weights(limoe, load_state(checkpoint, limoe, sharding, (kind,)), kind)
        encoder = ModelEncoder(limoe.eval(), config.data, dtype_of(config.train.precision))
        embedded[kind] = encoder.images(pixels), encoder.texts(tokens)
    return embedded


BIASED = {"router__bias__kind": "modality", "router__bias__rate": 0.05, "router__aux__load": 0.0}
OTHER_EXPERTS = {
    "router__choice": "expert",
    "router__gates": "sigmoid",
    "router__aux__load": 0.0,
    "router__eval_capacity_factor": 1.5,
    "model__expert_granularity": 2,
    "model__shared_experts": 1,
}


@pytest.mark.parametrize(
    "layout",
    [Layout(2, 2, 2), Layout(2, 1, 3), Layout(2, 2, 3).with_(**BIASED), Layout(2, 2, 2).with_(**OTHER_EXPERTS)],
    ids=["EP", "ZeRO-3", "bias", "other experts"],
)
def test_an_exported_model_embeds_as_evaluation_does(layout, run_dir):
    layout = layout.with_(train__ema=0.5)
    (run_dir / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(tiny(layout))))
    train_tokenizer(TEXTS, run_dir / TOKENIZER, 60)
    write_shard(run_dir / "val.tar", [{"jpg": content, "txt": "picture"} for content in IMAGES])
    ranks = run_distributed(train_and_embed, layout.world, layout, run_dir)
    assert not torch.allclose(ranks[0][WEIGHTS][0], ranks[0][EMA][0], atol=1e-4), "the average is something else"
    for kind in (WEIGHTS, EMA):
        output = run_dir / kind
        write_export(read_arguments([f"run={checkpoint_path(run_dir, 2)}", f"output={output}", f"weights={kind}"]))
        limoe = model.load(output)
        opened = [Image.open(io.BytesIO(content)) for content in IMAGES]
        for rank in ranks:
            images, texts = rank[kind]
            for given in (IMAGES, opened):
                torch.testing.assert_close(limoe.embed_images(given), images, rtol=0, atol=2e-6)
            torch.testing.assert_close(limoe.embed_texts(TEXTS), texts, rtol=0, atol=2e-6)
