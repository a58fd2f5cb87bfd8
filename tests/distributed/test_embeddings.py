"""Embeddings at evaluation depend on the image or text alone: not on the layout, nor on what else is in the batch."""

import pytest
import torch
from torch import Tensor

from model.limoe import LIMoE
from tests.distributed.setups import Layout, TinyRun, plain_torch, tiny
from tests.distributed.spawn import run_distributed
from trainer.config.schema import Config
from trainer.distributed.device import dtype_of
from trainer.distributed.processes import Processes
from trainer.engine.state import WEIGHTS
from trainer.evaluation.encoder import ModelEncoder

pytestmark = pytest.mark.slow

PAIRS = 12
# What each rank embeds in each call: other rows, other numbers of them, in another order.
CALLS = {
    0: [[0, 1, 2, 3, 4, 5, 6], [7], [8, 9, 10, 11]],
    1: [[11, 10], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [3, 3, 3]],
}


def pixels_and_tokens(config: Config) -> tuple[Tensor, Tensor]:
    """uint8 images and padded token rows."""
    generator = torch.Generator().manual_seed(7)
    size = config.model.image_size
    images = torch.randint(0, 256, (PAIRS, 3, size, size), dtype=torch.uint8, generator=generator)
    texts = torch.randint(1, config.model.vocabulary, (PAIRS, config.model.text_length), generator=generator)
    texts[::2, 4:] = 0
    return images, texts


Embedded = tuple[Tensor, Tensor, Tensor]
"""Images' embeddings and features, texts' embeddings."""


def embed(processes: Processes, layouts: list[Layout]) -> list[tuple[list[Embedded], float]]:
    """After one training step: the embeddings of each call; then the loss of the next training step."""
    results = []
    for layout in layouts:
        run = TinyRun(tiny(layout), processes)
        run.step()
        images, texts = pixels_and_tokens(run.config)
        model = run.engine.module
        model.eval()
        encoder = ModelEncoder(model, run.config.data, dtype_of(run.config.train.precision))
        embedded = [embed_rows(encoder, images[rows], texts[rows]) for rows in CALLS[processes.rank % 2]]
        model.train()
        results.append((embedded, run.step()[0]))
    return results


def embed_rows(encoder: ModelEncoder, images: Tensor, texts: Tensor) -> Embedded:
    return encoder.images(images), encoder.features(images), encoder.texts(texts)


def test_embeddings_are_those_of_one_process_whatever_the_batch():
    layouts = [Layout(2, ep, stage) for ep, stage in ((1, 1), (2, 2), (2, 3), (1, 3))]
    config = tiny()
    trained = plain_torch(config, 2, (1,))
    model = LIMoE(config.model, config.router)
    model.load_state_dict({name.removeprefix("model/"): v for name, v in trained.states[1].items() if name.startswith(WEIGHTS)})
    encoder = ModelEncoder(model.eval(), config.data, torch.float32)
    images, texts = pixels_and_tokens(config)
    one_by_one = [embed_rows(encoder, images[row : row + 1], texts[row : row + 1]) for row in range(PAIRS)]
    ranks = run_distributed(embed, 2, layouts)
    for rank, results in enumerate(ranks):
        for layout, (embedded, loss_after) in zip(layouts, results, strict=True):
            print(rank, layout)
            for rows, found in zip(CALLS[rank], embedded, strict=True):
                for place, row in enumerate(rows):
                    for rows_of_kind, alone in zip(found, one_by_one[row], strict=True):
                        torch.testing.assert_close(rows_of_kind[place], alone[0], rtol=0, atol=1e-5)
            assert loss_after == pytest.approx(trained.losses[1], rel=1e-5), "training continues as if nothing had been evaluated"
