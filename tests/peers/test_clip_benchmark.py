"""CLIP_benchmark and we get the same numbers for an export, on folders in its layout."""

import json
from pathlib import Path

import pytest
import torch
import webdataset

import model
from tests.peers.environment import needs_peers, run_among_peers
from tests.trainer.export.runs import config, write_run
from trainer.clip_benchmark import benchmark_arguments
from trainer.config.schema import DataConfig
from trainer.data.shapes.write import write_shapes
from trainer.data.shards.samples import read_samples
from trainer.data.tokenizer import train_tokenizer
from trainer.distributed.processes import ALONE
from trainer.errors import UserError
from trainer.evaluation.classification_set import read_classification_set
from trainer.evaluation.encoder import ModelEncoder
from trainer.evaluation.setting import Setting
from trainer.evaluation.suite import evaluate
from trainer.evaluation.zeroshot import class_embeddings
from trainer.export.request import read_arguments
from trainer.export.write import write_export

KS = (1, 5, 10)
METRICS = {
    "cifar10_runs_photos_export_en_zeroshot_classification": {
        "zeroshot_cifar10/top1": "acc1",
        "zeroshot_cifar10/top5": "acc5",
        "zeroshot_cifar10/mean_per_class": "mean_per_class_recall",
    },
    "flickr8k_runs_photos_export_en_zeroshot_retrieval": {
        **{f"retrieval_flickr8k/t2i_r{k}": f"image_retrieval_recall@{k}" for k in KS},
        **{f"retrieval_flickr8k/i2t_r{k}": f"text_retrieval_recall@{k}" for k in KS},
    },
}
"""The files that CLIP_benchmark writes, and our names for the metrics in them."""


def write_flickr8k(shapes: Path, folder: Path) -> list[str]:
    """Pairs of the embedded set with three captions an image, as CLIP_benchmark has Flickr8k. Returns a caption of each.

    No caption stands twice: of equal scores CLIP_benchmark takes any as the best.
    """
    (folder / "test").mkdir(parents=True)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    (folder / "test" / "nshards.txt").write_text("1\n")
    samples = [sample for shard in sorted(shapes.glob("val-*.tar")) for sample in read_samples(str(shard))]
    images = {sample.files["txt"].decode(): sample.files["jpg"] for sample in samples}
    with webdataset.TarWriter(str(folder / "test" / "0.tar")) as writer:
        for number, (caption, image) in enumerate(images.items()):
            captions = [caption, f"a picture of {caption}", f"{caption} again"]
            writer.write({"__key__": f"{number:06}", "jpg": image, "txt": "\n".join(captions)})
    return list(images)


@pytest.mark.slow
@needs_peers
def test_clip_benchmark_and_we_agree_on_an_export(tmp_path: Path) -> None:
    made = config()
    run = write_run(tmp_path / "runs" / "photos", made, (10,))
    write_export(read_arguments([f"run={run}"]))
    shapes = write_shapes(DataConfig(kind="shapes", shapes_train=16, shapes_val=96, cache=str(tmp_path)), made.model.image_size)
    (tmp_path / "sets").mkdir()
    (shapes / "zeroshot").rename(tmp_path / "sets" / "cifar10")
    captions = write_flickr8k(shapes, tmp_path / "sets" / "flickr8k")
    train_tokenizer(captions, run / "export" / "tokenizer.model", made.model.vocabulary)  # one that tells them apart

    run_among_peers(
        "trainer.clip_benchmark",
        *("--pretrained", "runs/photos/export", "--dataset", "wds/cifar10", "wds/flickr8k", "--dataset_root", "sets/{dataset}"),
        *("--no_amp", "--num_workers", "0", "--batch_size", "50", "--save_clf", "classes.pt"),
        *("--recall_k", *map(str, KS)),
        folder=tmp_path,
    )

    made.data.workers = 0
    made.eval.suite, made.eval.retrieval = str(tmp_path / "sets"), False
    limoe = model.load(run / "export")
    encoder = ModelEncoder(limoe.module, made.data, torch.float32)
    ours = evaluate(made, encoder, limoe.tokenizer, ALONE)
    written = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    theirs = {
        f"eval/{name}": written[f"{result}.json"]["metrics"][metric]
        for result, metrics in METRICS.items()
        for name, metric in metrics.items()
    }
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-4)
    assert 0 < theirs["eval/zeroshot_cifar10/top1"] < theirs["eval/zeroshot_cifar10/top5"] < 1

    setting = Setting.of(made, encoder, limoe.tokenizer, ALONE)
    classes = class_embeddings(read_classification_set(tmp_path / "sets" / "cifar10"), setting)
    torch.testing.assert_close(torch.load(tmp_path / "classes.pt").T, classes, atol=1e-5, rtol=0)


def test_what_clip_benchmark_is_given() -> None:
    defaults = ["eval", "--model_type", "limoe", "--model", "limoe", "--output", "{dataset}_{pretrained}_{language}_{task}.json"]
    given = ["--dataset", "wds/a", "wds/b", "--pretrained", "runs/a/export", "/x/b/", "--no_amp"]
    wanted, folders = benchmark_arguments(given)
    assert wanted == [*defaults, "--dataset", "wds/a", "wds/b", "--no_amp", "--pretrained", "runs_a_export", "x_b"]
    assert folders == {"runs_a_export": "runs/a/export", "x_b": "/x/b"}
    assert benchmark_arguments(["eval", *given]) == (wanted, folders)
    assert benchmark_arguments(["--pretrained=.", "--output", "o.json"])[0][-4:] == [
        "--output",
        "o.json",
        "--pretrained",
        Path.cwd().name,
    ]
    assert benchmark_arguments(["--pretrained_model", "limoe,/x"])[0] == [*defaults, "--pretrained_model", "limoe,/x"]
    others = ["--model_type", "open_clip", "--pretrained", "openai"]
    assert benchmark_arguments(others) == (["eval", *others], {})
    assert benchmark_arguments(["build", "a.json"]) == (["build", "a.json"], {})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--dataset", "cifar10"], "--pretrained is missing: give the folder that"),
        (["--pretrained", "a/export", "../a/export"], "two exports would both be called a_export"),
        (["--pretrained", "~nobody-here/x"], "the home directory of '~nobody-here' is unknown"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        benchmark_arguments(arguments)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
