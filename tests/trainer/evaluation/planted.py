"""A model made by hand, of which it is known what each expert is for."""

import torch
from torch import Tensor

from model.config import ModelConfig, RouterConfig
from model.limoe import LIMoE
from trainer.evaluation.classification_set import ClassificationSet
from trainer.evaluation.expert_samples import Classified, ExpertSamples, Pairs

COLOURS = ("red", "green", "blue", "grey")
"""What is neither red nor green nor blue looks grey; no picture is."""
WORDS = {colour: number for number, colour in enumerate(COLOURS, start=1)}
TEXT_EXPERT, NEVER_CHOSEN = 3, 4
MARK = 6  # the place that all text tokens have in common
ALONE = 7  # the place of "green", which only the text expert turns into its meaning


def planted() -> LIMoE:
    """One block without attention. A picture is one patch.

    Experts 0 to 2: each takes the pictures of one colour and alone gives them their meaning. Expert 3 takes all texts; "green"
    has its meaning from this expert alone, the others have theirs already. Expert 4 is never chosen.
    """
    config = ModelConfig(
        width=8, mlp=8, heads=1, layers=1, expert_layers=[0], experts=5, image_size=2, patch=2, text_length=2, vocabulary=5,
        embedding=3,
    )  # fmt: skip
    model = LIMoE(config, RouterConfig()).initialise(0).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    block = model.towers[0].blocks[0]
    for norm in (block.norm1, block.norm2, model.towers[0].norm):
        norm.weight.fill_(1)
    for colour in range(3):
        model.patches.project.weight[colour, 4 * colour : 4 * colour + 4] = 1.25
        block.mlp.router.weight[colour, colour] = 1
        block.mlp.experts.up[colour, colour, 0] = 1
        block.mlp.experts.down[colour, 0, 3 + colour] = 5
        for head in model.heads.values():
            head.weight[colour, 3 + colour] = 1
    block.mlp.router.weight[TEXT_EXPERT, MARK] = 3
    block.mlp.experts.up[TEXT_EXPERT, ALONE, 0] = 1
    block.mlp.experts.down[TEXT_EXPERT, 0, 4] = 5
    model.tokens.table.weight[:, MARK] = 5
    for word, place in (("red", 3), ("green", ALONE), ("blue", 5)):
        model.tokens.table.weight[WORDS[word], place] = 5
    model.tokens.table.weight[WORDS["grey"], 3:6] = 5
    return model


def pictures(colours: list[int]) -> Tensor:
    """Normalised pictures `[n, 3, 2, 2]` of one colour each."""
    images = torch.full((len(colours), 3, 2, 2), -1.0, dtype=torch.float64)
    images[range(len(colours)), colours] = 1.0
    return images


def tokens(texts: list[str]) -> Tensor:
    """Int64 `[t, 2]`: the word, and padding."""
    return torch.tensor([[WORDS[text], 0] for text in texts])


def samples(each: int = 3) -> ExpertSamples:
    """As many pictures of every colour, in turns, as a classification set and with captions."""
    colours = list(range(3)) * each
    warm = ["warm", "cold", "cold", "none"]
    classes = ClassificationSet(list(COLOURS), ["{c}"], {"warmth": warm}, [])
    captions = [COLOURS[colour] for colour in colours]
    ids = [f"shard/{number}" for number in range(len(colours))]
    return ExpertSamples(
        Pairs(pictures(colours), ids, captions, torch.arange(len(colours))),
        [Classified("default", pictures(colours), ids, torch.tensor(colours), classes)],
    )
