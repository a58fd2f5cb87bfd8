"""Pictures of the experts while they are trained: in any layout they show what the checkpoint shows, and they disturb nothing."""

import json
from pathlib import Path

import pytest

from tests.distributed.spawn import run_distributed
from tests.distributed.test_runs import COMMON, losses_in, run_program
from tests.trainer.reporting.wandb_records import records
from trainer.checkpoint.files import checkpoint_path
from trainer.config.compose import compose_config
from trainer.data.shapes.write import write_shapes
from trainer.data.sources import with_shapes
from trainer.distributed.processes import Processes
from trainer.evaluation.expert_findings import Findings
from trainer.evaluation.expert_samples import read_samples
from trainer.report.expert_findings import find, numbers
from trainer.report.experts import open_place, read_request
from trainer.reporting.log_lines import log_to_terminal
from trainer.training import run

pytestmark = pytest.mark.slow

STEPS, EVERY, SAMPLES = 3, 2, 13  # samples that two ranks cannot share evenly
SETTINGS = [
    *COMMON,
    "eval.retrieval=true",
    "eval.zeroshot=null",
    "eval.fewshot=null",
    "schedule.warmup_steps=1",
    "model.experts=4",
    f"train.steps={STEPS}",
    "checkpoint.every_steps=0",
    f"log.image_samples={SAMPLES}",
    "data.shapes_val=32",
]
LAYOUT = ["parallel.expert_parallel=2", "parallel.zero_stage=3", "train.activation_checkpointing=blocks"]
"""Everything for which ranks need each other in a forward pass."""


def note_numbers(findings: Findings, command: str, folder: Path, loads: Path) -> dict[str, Path]:
    """Instead of drawing, which takes long."""
    assert loads.is_file()
    folder.mkdir(parents=True)
    (folder / "experts.json").write_text(json.dumps(numbers(findings)))
    return {}


def run_without_drawing(processes: Processes, overrides: list[str]) -> int:
    """What every rank does."""
    log_to_terminal(processes.rank)
    return run.train(compose_config(overrides), processes, note_numbers)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_the_losses_are_the_same_to_the_last_bit_and_the_numbers_those_of_the_checkpoint(tmp_path: Path, cache: Path):
    losses = []
    for name, more in (("without", []), ("with", [f"log.every_images={EVERY}"])):
        overrides = [*SETTINGS, *LAYOUT, f"data.cache={cache}", f"run.dir={tmp_path / name}", *more]
        assert run_distributed(run_without_drawing, 2, overrides) == [0, 0]
        losses.append(losses_in(tmp_path / name))
    assert losses[0] == losses[1]
    assert not (tmp_path / "without" / "experts").exists()

    made = tmp_path / "with" / "experts"
    assert sorted(path.name for path in made.iterdir()) == ["step-00000002", "step-00000003"]
    shown = json.loads((made / f"step-{STEPS:08d}" / "experts.json").read_text())
    checkpoint = checkpoint_path(tmp_path / "with", STEPS)
    trained = open_place(checkpoint, read_request([str(checkpoint), "experts=true"]))
    config = with_shapes(trained.config, write_shapes(trained.config.data, trained.config.model.image_size))
    expected = numbers(find(trained, read_samples(config, SAMPLES), with_atlas=True))
    assert shown["shown_with"] == expected["shown_with"]
    assert_alike(shown["tasks"], expected["tasks"])
    assert_alike(shown["layers"], expected["layers"])


def assert_alike(one: object, other: object) -> None:
    """Equal but for the last digits of numbers."""
    if isinstance(one, dict):
        assert isinstance(other, dict) and one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, list):
        assert isinstance(other, list) and len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_alike(mine, theirs)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=2e-4)
    else:
        assert one == other


def test_they_are_in_the_run_directory_and_in_wandb(tmp_path: Path, cache: Path):
    pytest.importorskip("matplotlib")
    run_dir = tmp_path / "run"
    overrides = [*SETTINGS, "train.steps=2", "log.every_images=0", "log.wandb=offline", "log.experts=true"]
    overrides += [f"data.cache={cache}", f"run.dir={run_dir}"]
    assert run_distributed(run_program, 1, overrides) == [0]
    folder = run_dir / "experts" / "step-00000002"
    kinds = ("specialists", "patches", "atlas", "load")
    pictures = {f"layer01-{what}-{theme}.png" for what in kinds for theme in ("light", "dark")}
    assert {path.name for path in folder.iterdir()} == {"experts.md", "experts.json", *pictures}
    history = [record["item"] for record in records(run_dir, "history")]
    shown = {name: item for item in history for name in item if name.startswith("experts/") and name.endswith("._type")}
    for what in kinds:
        assert shown[f"experts/layer01/{what}._type"][f"experts/layer01/{what}._type"] == "image-file"
        assert shown[f"experts/layer01/{what}._type"]["step"] == 2
    (tables,) = (item for item in history if "predictions/retrieval._type" in item and item["step"] == 2)
    assert tables["predictions/retrieval._type"] == "table-file"
    assert (run_dir / "predictions" / "step-00000002.html").stat().st_size > 1000
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    by_expert = [row for row in rows if "routing/layer01/expert03/load/text" in row]
    assert [row["step"] for row in by_expert] == [1, 2]
