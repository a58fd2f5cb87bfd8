"""A small model of open_clip judged by open_clip's own functions and by ours: how far apart they are, as JSON.

`start.py tests.peers.judged FOLDER`, with a classification set in FOLDER/set. Weights go to FOLDER/model.
"""

import io
import json
import sys
from pathlib import Path

import open_clip
import torch
from clip_benchmark.metrics import image_caption_selection
from PIL import Image
from torch import Tensor

from trainer.config.schema import Config
from trainer.data.limits import LeftOut
from trainer.data.shards.samples import read_samples
from trainer.data.wording import read_classes, read_prompts
from trainer.distributed.processes import ALONE
from trainer.evaluate import evaluate_open_clip
from trainer.evaluation.classification_set import ClassificationSet, read_classification_set
from trainer.evaluation.open_clip_model import load_open_clip
from trainer.evaluation.setting import Setting
from trainer.evaluation.winoground import twin_scores

MODEL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


NAMES = {"text_score": "text_acc", "image_score": "image_acc", "group_score": "acc"}
"""Ours and CLIP_benchmark's."""


def write_model(folder: Path) -> str:
    """A model with random weights; returns its name for open_clip."""
    folder.mkdir()
    torch.manual_seed(0)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": {}}))
    torch.save(open_clip.CLIP(**MODEL).state_dict(), folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"


def judged_by_open_clip(name: str, dataset: ClassificationSet) -> dict[str, Tensor]:
    """Embeddings, features and which classes come first, image by image."""
    model, transform = open_clip.create_model_from_pretrained(name)
    tokenizer = open_clip.get_tokenizer(name)
    samples = [sample for shard in dataset.shards for sample in read_samples(shard)]
    pixels = torch.stack([transform(Image.open(io.BytesIO(sample.files["jpg"]))) for sample in samples])
    images = model.eval().encode_image(pixels, normalize=True)
    says = [lambda name, said=said: said.replace("{c}", name) for said in dataset.templates]
    classes = open_clip.build_zero_shot_classifier(model, tokenizer, dataset.classes, says)
    labels = torch.tensor([int(sample.files["cls"]) for sample in samples])
    right = (images @ classes).argsort(dim=1, descending=True) == labels[:, None]
    return {
        "images": images,
        "texts": model.encode_text(tokenizer(dataset.prompts()), normalize=True),
        "embeddings": model.encode_image(pixels),
        "projection": model.visual.proj,
        "top1": right[:, :1].any(dim=1).double().mean(),
        "top5": right[:, :5].any(dim=1).double().mean(),
    }


def winoground_apart(name: str, dataset: ClassificationSet) -> float:
    """How far CLIP_benchmark's scores of Winoground and ours are apart; the set's images in their order are the pairs."""
    model, transform = open_clip.create_model_from_pretrained(name)
    tokenizer = open_clip.get_tokenizer(name)
    samples = [sample for shard in dataset.shards for sample in read_samples(shard)]
    pixels = torch.stack([transform(Image.open(io.BytesIO(sample.files["jpg"]))) for sample in samples])
    captions = [f"number {number} of a set" for number in range(len(samples))]
    pairs = [captions[place : place + 2] for place in range(0, len(captions), 2)]
    batch = (pixels.view(-1, 2, *pixels.shape[1:]), pairs)
    theirs = image_caption_selection.evaluate(model.eval(), [batch], tokenizer, "cpu", amp=False)
    images, texts, _ = model(pixels, tokenizer(captions))
    ours = twin_scores(images.view(-1, 2, images.shape[1]) @ texts.view(-1, 2, texts.shape[1]).mT)
    return max(abs(ours[name] - theirs[other]) for name, other in NAMES.items())


def judged_by_us(name: str, dataset: ClassificationSet, config: Config) -> dict[str, Tensor]:
    """Embeddings and features through our reader."""
    found = load_open_clip(name, torch.device("cpu"), torch.float32)
    config.model.image_size, config.model.text_length = found.image_size, found.text_length
    setting = Setting.of(config, found, found.tokenize, ALONE, found.crop)
    (batch,) = setting.batches(dataset.shards, LeftOut())
    rows = batch.valid
    return {
        "images": setting.embed_images(batch.images)[rows],
        "texts": setting.embed_texts(dataset.prompts()),
        "features": setting.image_features(batch.images)[rows],
    }


@torch.no_grad()
def main() -> None:
    """Compare."""
    folder = Path(sys.argv[1])
    name, dataset = write_model(folder / "model"), read_classification_set(folder / "set")
    config = Config()
    config.data.workers, config.eval.batch_size, config.train.precision = 0, 64, "fp32"
    config.eval.zeroshot = str(folder / "set")
    theirs, ours = judged_by_open_clip(name, dataset), judged_by_us(name, dataset, config)
    evaluate_open_clip(name, config, ALONE, folder / "ours.json")
    metrics = json.loads((folder / "ours.json").read_text())["metrics"]
    apart = {
        "images": ours["images"] - theirs["images"],
        "texts": ours["texts"] - theirs["texts"],
        "features": ours["features"] @ theirs["projection"] - theirs["embeddings"],
        **{top: theirs[top] - metrics[f"eval/zeroshot/{top}"] for top in ("top1", "top5")},
    }
    found = {
        "apart": {what: difference.abs().max().item() for what, difference in apart.items()},
        "winoground": winoground_apart(name, dataset),
        "top5": theirs["top5"].item(),
        "words": [len(read_prompts("imagenet80")), len(read_prompts("simple")), len(read_classes("imagenet"))],
        "prompts": read_prompts("food101"),
    }
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
