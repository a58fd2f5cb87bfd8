import shutil

import pytest
import torch
from torch.nn.functional import normalize

from tests.distributed.spawn import run_distributed
from tests.trainer.evaluation import helpers
from tests.trainer.evaluation.test_zeroshot import LABELS, PROMPTS, write_folder
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.evaluation.suite import evaluate, summary_rows

CAPTIONS = [f"caption {copy} of {image}" for image in range(11) for copy in range(3)]


def configuration(folder, **changes):
    config = Config()
    config.data.workers = 0
    config.model.image_size, config.model.text_length = helpers.SIZE, 3
    config.eval.batch_size = 6
    config.data.val = str(folder / "val")
    config.data.caption_lines = True
    config.eval.zeroshot = {"default": str(folder / "seen"), "unseen": str(folder / "unseen")}
    for name, value in changes.items():
        setattr(config.eval, name, value)
    return config


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "seen")
    write_folder(tmp_path / "unseen", labels=LABELS[::-1], attributes=None)
    samples = [{"txt": "\n".join(CAPTIONS[3 * image : 3 * image + 3])} for image in range(11)]
    helpers.write_shards(tmp_path / "val" / "%d.tar", samples)
    return tmp_path


def judged(config, processes=helpers.ALONE):
    texts = [*PROMPTS, *CAPTIONS]
    generator = torch.Generator().manual_seed(0)
    image_rows, text_rows = (normalize(torch.randn(n, 5, generator=generator), dim=-1) for n in (len(LABELS), len(texts)))
    return evaluate(config, helpers.Table(image_rows, text_rows, processes), helpers.Dictionary(texts), processes)


def test_names(folder):
    metrics = judged(configuration(folder))
    seen = [
        "top1",
        "top1_chance",
        "top5",
        "top5_chance",
        "colour",
        "colour_chance",
        "shape",
        "shape_chance",
        "mean_per_class",
        "images",
    ]
    both_ways = [f"{way}_r{k}{end}" for way in ("i2t", "t2i") for k in (1, 5, 10) for end in ("", "_chance")]
    assert set(metrics) == {
        *(f"eval/zeroshot/{name}" for name in seen),
        *(f"eval/zeroshot_unseen/{name}" for name in seen if not name.startswith(("colour", "shape"))),
        *(f"eval/retrieval/{name}" for name in [*both_ways, "modality_gap", "pair_cosine", "images", "captions"]),
    }
    assert metrics["eval/zeroshot/top1"] != metrics["eval/zeroshot_unseen/top1"]


def test_a_path_alone_is_the_default_set(folder):
    metrics = judged(configuration(folder, zeroshot=str(folder / "unseen"), retrieval=False))
    assert {name.split("/")[1] for name in metrics} == {"zeroshot"}
    assert metrics["eval/zeroshot/top1"] == judged(configuration(folder))["eval/zeroshot_unseen/top1"]


def test_retrieval_on_data_val_on_a_pattern_or_not_at_all(folder):
    config = configuration(folder, zeroshot=None)
    on_val = judged(config)
    assert on_val["eval/retrieval/captions"] == len(CAPTIONS)
    config.data.val = None
    assert judged(config) == {}
    config.eval.retrieval = str(folder / "val" / "0.tar")
    assert judged(config) == pytest.approx(on_val)
    for nothing in (False, None):
        config.eval.retrieval = nothing
        assert judged(config) == {}


def test_a_set_that_is_switched_off(folder):
    config = configuration(folder, zeroshot={"default": None, "unseen": str(folder / "unseen")}, retrieval=False)
    assert {name.split("/")[1] for name in judged(config)} == {"zeroshot_unseen"}


def test_few_shots_of_one_set_or_of_named_ones(folder):
    helpers.write_shards(folder / "train" / "%d.tar", [{"cls": label} for label in LABELS])
    place = {"train": str(folder / "train"), "test": str(folder / "seen")}
    one = judged(configuration(folder, zeroshot=None, retrieval=False, fewshot=place))
    assert set(one) == {
        f"eval/fewshot/{name}" for name in ("1shot", "1shot_std", "1shot_mean_per_class", "1shot_chance", "images")
    }
    named = judged(configuration(folder, zeroshot=None, retrieval=False, fewshot={"shapes": place, "off": None}))
    assert named == {name.replace("eval/fewshot/", "eval/fewshot_shapes/"): value for name, value in one.items()}
    with pytest.raises(UserError, match=r"^eval\.fewshot\.shapes: no shards match; /nowhere does not exist"):
        judged(configuration(folder, zeroshot=None, retrieval=False, fewshot={"shapes": "/nowhere"}))


def test_a_suite_of_folders(folder):
    (folder / "val" / "dataset_type.txt").write_text("retrieval")
    shutil.copytree(folder / "val", folder / "choices")
    (folder / "choices" / "dataset_type.txt").write_text("image_caption_selection")
    suite = [str(folder / name) for name in ("seen", "val", "choices")]
    metrics = judged(configuration(folder, suite=suite))
    # Of the same data, the same numbers.
    for one, other in (("eval/zeroshot/", "eval/zeroshot_seen/"), ("eval/retrieval/", "eval/retrieval_val/")):
        same = {metric.replace(one, other): value for metric, value in metrics.items() if metric.startswith(one)}
        assert same == {metric: value for metric, value in metrics.items() if metric.startswith(other)}
    assert metrics["eval/captions_choices/top1_chance"] == pytest.approx(1 / 3)
    rows = [what for what, _, _ in summary_rows(metrics)]
    assert {"zero-shot top-1, seen", "image to text R@1, val", "caption selection, choices"} <= set(rows)
    with pytest.raises(UserError, match=r"would be eval/zeroshot_unseen, like another set: name it"):
        judged(configuration(folder, suite=str(folder / "unseen")))


def test_a_setting_that_is_no_path(folder):
    with pytest.raises(UserError, match=r"eval\.zeroshot: 'default' is 3"):
        judged(configuration(folder, zeroshot=3))


def test_a_batch_that_the_ranks_cannot_share(folder):
    config = configuration(folder, batch_size=5)
    errors = helpers.on_threads(lambda processes: judged(config, processes), 2)
    assert all(isinstance(error, UserError) and "eval.batch_size=5" in str(error) for error in errors)


def test_summary_rows():
    metrics = {
        "train/loss": 1.0,
        "eval/zeroshot/top1": 0.8321,
        "eval/zeroshot/top1_chance": 1 / 48,
        "eval/zeroshot/colour": 0.5,
        "eval/zeroshot/colour_chance": 0.125,
        "eval/zeroshot/mean_per_class": 0.8,
        "eval/zeroshot/images": 480.0,
        "eval/zeroshot_unseen/top1": 0.25,
        "eval/zeroshot_unseen/top1_chance": 0.0625,
        **{f"eval/fewshot{end}/{n}shot": 0.1 * n for end, ns in (("", (1, 5, 10)), ("_few", (1, 5))) for n in ns},
        **{f"eval/fewshot{end}/{n}shot_chance": 0.1 for end, ns in (("", (1, 5, 10)), ("_few", (1, 5))) for n in ns},
        "eval/fewshot/10shot_std": 0.01,
        "eval/retrieval/i2t_r1": 0.1,
        "eval/retrieval/i2t_r1_chance": 0.001,
        "eval/retrieval/i2t_r10": 0.4,
        "eval/retrieval/i2t_r10_chance": 0.01,
        "eval/retrieval/t2i_r5": 0.2,
        "eval/retrieval/t2i_r5_chance": 0.005,
    }
    assert summary_rows(metrics) == [
        ("zero-shot top-1", "83.2%", "2.1%"),
        ("zero-shot colour", "50.0%", "12.5%"),
        ("zero-shot mean per class", "80.0%", "2.1%"),
        ("zero-shot top-1, unseen", "25.0%", "6.2%"),
        ("10-shot probe", "100.0%", "10.0%"),
        ("5-shot probe, few", "50.0%", "10.0%"),
        ("image to text R@1", "10.0%", "0.1%"),
        ("text to image R@5", "20.0%", "0.5%"),
    ]


def judged_then_stopped(processes, config):
    metrics = judged(config, processes)
    config.eval.zeroshot = "/nowhere"
    with pytest.raises(UserError, match="/nowhere"):
        judged(config, processes)
    return metrics


@pytest.mark.slow
def test_two_processes_are_as_one(folder):
    config = configuration(folder)
    alone = judged(config)
    first, second = run_distributed(judged_then_stopped, 2, config)
    assert first == second == pytest.approx(alone, abs=1e-12)
