"""A model with random weights and a gallery of random pictures."""

from dataclasses import replace

import torch

from model.config import RouterConfig
from model.limoe import LIMoE
from model.tokenizer import Tokenizer
from trainer.checkpoint.trained import Trained
from trainer.config.schema import Config
from trainer.explore.gallery import Gallery

SIZE, PATCH, EXPERTS, LENGTH = 16, 4, 4, 8
IMAGES = 10


def made_trained(tokenizer: Tokenizer, router: RouterConfig | None = None, **model: object) -> Trained:
    """A model of two blocks, the second with experts; router, model: what it has instead."""
    config = Config()
    usual = {"width": 16, "mlp": 24, "heads": 2, "embedding": 8, "layers": 2, "expert_layers": [1], "experts": EXPERTS}
    sizes = {"vocabulary": 200, "image_size": SIZE, "patch": PATCH, "text_length": LENGTH}
    config.model = replace(config.model, **usual | sizes | model)
    config.router = router or config.router
    config.eval.batch_size, config.train.batch_size = 4, 6
    made = LIMoE(config.model, config.router.without_drops()).initialise(1)
    for parameter in made.parameters():  # the embeddings and gates of a new model hardly differ
        parameter.data.mul_(4)
    return Trained(made.eval().requires_grad_(False), tokenizer, config, "made, step 7", 7)


def made_gallery() -> Gallery:
    """Of its texts, every picture has one or two, but the last has none."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    texts = [f"picture number {number} of a small set" for number in range(12)]
    texts_of = [[number, number + 1] if number % 2 else [number] for number in range(IMAGES - 1)] + [[]]
    return Gallery("data.val", images, [f"/data/val-0.tar/{number:06}" for number in range(IMAGES)], texts, texts_of)
