"""What a run measures and leaves behind: names that scripts and dashboards depend on, when they come, and that they are right."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from model.auxiliary import RoutingSums
from model.limoe import LIMoE
from model.objective import training_losses
from model.peers import SingleProcess
from model.preprocess import normalise
from model.stream import MODALITIES
from tests.distributed.setups import BATCH, Layout, NothingUnusable, TinyRun, batch, rows_of, tiny
from tests.distributed.spawn import run_distributed
from tests.distributed.test_runs import COMMON, TWO, run_program
from tests.trainer.reporting.wandb_records import last_summary, records
from trainer.config.schema import Config
from trainer.data.batch import Batch
from trainer.data.loader import TrainingLoader
from trainer.distributed.processes import Processes
from trainer.evaluation.suite import is_constant
from trainer.training.schedule import learning_rate
from trainer.training.step import StepReport, Trainer

pytestmark = pytest.mark.slow

ACCUMULATE = 2
# Half the wanted slots, so that the routing success is far from 1.
LAYOUT = Layout(2, 2, 2).with_(train__accumulate=ACCUMULATE, router__capacity_factor=0.5)


def pairs(micro: int, config: Config) -> tuple[Tensor, Tensor]:
    """Pixels and tokens of one micro-batch over all processes."""
    images, texts = batch(0, config, micro)
    return (images.clamp(-1, 1) * 127.5 + 127.5).to(torch.uint8), texts


class Batches(NothingUnusable):
    """A TrainingLoader that gives this rank's rows of the micro-batches of one step."""

    def __init__(self, run: TinyRun) -> None:
        super().__init__()
        self._run = run
        self._micro = 0

    def __next__(self) -> Batch:
        """The next micro-batch."""
        pixels, texts = rows_of(self._run.processes.rank, self._run.processes.world, *pairs(self._micro, self._run.config))
        self._micro += 1
        return Batch(pixels, texts, [""] * len(texts))


def trainer_of(processes: Processes, layout: Layout = LAYOUT) -> Trainer:
    """One that trains a tiny model."""
    run = TinyRun(tiny(layout), processes)
    return Trainer(run.config, run.engine, cast(TrainingLoader, Batches(run)), run.progress, processes, run.peers)


def take_a_step(processes: Processes, layout: Layout) -> tuple[StepReport, dict[str, float]]:
    """The report and the metrics of the first step."""
    trainer = trainer_of(processes, layout)
    outcome = trainer.step()
    report = trainer.conclude(outcome)
    return report, trainer.measure(outcome, report)


@pytest.mark.parametrize(("negatives", "loss"), [("batch", "softmax"), ("micro", "sigmoid")])
def test_a_step_reports_what_one_process_computes_over_all_its_micro_batches(negatives: str, loss: str):
    layout = LAYOUT.with_(train__negatives=negatives, model__loss=loss)
    (first, told), (_, others) = run_distributed(take_a_step, LAYOUT.world, layout)
    timed = {name for name in told if name.startswith("perf/")}
    assert {name: told[name] for name in told.keys() - timed} == {name: others[name] for name in others.keys() - timed}
    config = tiny(layout)
    config.router.group_size = BATCH // ACCUMULATE // LAYOUT.world  # one process drops what the ranks drop
    model = LIMoE(config.model, config.router).initialise(config.seed)
    contrastive, auxiliary, parts, sums = [], [], [], []
    batches = [pairs(micro, config) for micro in range(ACCUMULATE)]
    if negatives == "batch":
        batches = [(torch.cat([pixels for pixels, _ in batches]), torch.cat([texts for _, texts in batches]))]
    for pixels, texts in batches:
        output = model(normalise(pixels, config.data.mean, config.data.std, torch.float32), texts)
        losses = training_losses(output, config.router.aux, config.model.experts, SingleProcess())
        contrastive.append(losses.contrastive.item())
        auxiliary.append(losses.auxiliary.item())
        parts.append(losses.parts)
        sums.append(losses.routing)
    assert told["train/loss_contrastive"] == pytest.approx(sum(contrastive) / len(batches), rel=1e-5)
    assert told["train/loss_aux"] == pytest.approx(sum(auxiliary) / len(batches), rel=1e-5)
    assert len(parts[0]) == 6
    for name in parts[0]:
        assert told[f"train/aux/{name}"] == pytest.approx(sum(part[name].item() for part in parts) / len(batches), rel=1e-4)
    assert told["train/loss"] == first.loss == pytest.approx(told["train/loss_contrastive"] + told["train/loss_aux"])
    assert told["train/lr"] == learning_rate(config.schedule, config.optim.lr, 0, config.train.steps)
    assert told["train/logit_scale"] == pytest.approx(config.model.initial_scale)
    assert told.get("train/logit_bias") == (config.model.initial_bias if loss == "sigmoid" else None)
    for m, name in enumerate(MODALITIES):
        layers = [share_kept([micro[layer] for micro in sums], m) for layer in config.model.expert_layers]
        assert told[f"routing/success/{name}"] == pytest.approx(sum(layers) / len(layers))
        assert 0.2 < told[f"routing/success/{name}"] < 0.9, "the test needs drops"


def reads_of_steps(processes: Processes, recorded: list[bool]) -> list[list[str]]:
    """How each step waited for the device, by the call that did; what DeepSpeed's optimizer reads for itself is left out."""
    trainer = trainer_of(processes)
    reads: list[str] = []
    ours = True

    def watch(name: str) -> None:
        original = getattr(Tensor, name)

        def read(tensor: Tensor, *given: Any, **named: Any) -> Any:
            nonlocal ours
            if ours:
                reads.append(name)
            ours, before = False, ours  # a read by another name is the same one
            try:
                return original(tensor, *given, **named)
            finally:
                ours = before

        setattr(Tensor, name, read)

    def not_ours(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal ours
            ours = False
            try:
                return work(*given, **named)
            finally:
                ours = True

        return call

    trainer.engine.backward, trainer.engine.step = not_ours(trainer.engine.backward), not_ours(trainer.engine.step)
    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__"):
        watch(name)
    steps = []
    for is_recorded in recorded:
        reads.clear()
        outcome = trainer.step()
        report = trainer.conclude(outcome)
        if is_recorded:
            trainer.measure(outcome, report)
        steps.append(list(reads))
    return steps


def test_a_step_that_is_not_recorded_reads_only_what_the_ranks_agree_on():
    steps = run_distributed(reads_of_steps, LAYOUT.world, [False, False, True, False])[0]
    assert steps[0] == steps[1] == steps[3] == ["tolist"], "the one reduction at the step's end"
    assert len(steps[2]) > 1, "or these counters see nothing"


def share_kept(micro: list[RoutingSums], m: int) -> float:
    """Of a modality's tokens in all micro-batches, the share that got a slot in a layer."""
    return float(sum(sums.kept_m[m].item() for sums in micro) / sum(sums.tokens_m[m].item() for sums in micro))


STEPS = 5
EVERY = 2

EVALUATED = [
    *("eval/zeroshot/top1", "eval/zeroshot/top1_chance", "eval/zeroshot/colour", "eval/zeroshot/shape"),
    "eval/zeroshot_unseen/top1",
    *("eval/fewshot/1shot", "eval/fewshot/10shot", "eval/fewshot/10shot_std", "eval/fewshot/25shot_mean_per_class"),
    *(f"eval/retrieval/{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)),
]
MEASURED = [
    *("train/loss", "train/loss_contrastive", "train/loss_aux", "train/lr", "train/grad_norm", "train/logit_scale"),
    *(f"routing/success/{name}" for name in MODALITIES),
    "routing/text_share",
    *(f"routing/layer01/{what}/{name}" for what in ("success", "entropy", "experts_used") for name in MODALITIES),
    *("routing/layer01/load/max", "routing/layer01/load/cv", "routing/layer01/dead_experts", "routing/dead_experts"),
    *("perf/pairs_per_second", "perf/step_seconds", "perf/data_seconds", "perf/memory_gib"),
]


def test_a_run_evaluates_at_its_first_and_last_step_and_between_and_leaves_all_it_should(tmp_path: Path):
    run_dir = tmp_path / "run"
    settings = [f"data.cache={tmp_path / 'cache'}", f"run.dir={run_dir}", f"train.steps={STEPS}", f"eval.every={EVERY}"]
    settings += [
        "eval.zeroshot=null",
        "eval.fewshot=null",
        "eval.retrieval=true",
        f"checkpoint.every_steps={EVERY}",
        "log.wandb=offline",
        "log.artifacts=last",
        "log.report=true",
    ]
    assert run_distributed(run_program, 2, [*COMMON, *TWO, *settings]) == [0, 0]

    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if "eval/zeroshot/top1" in row]
    stepped = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in evaluated] == [0, 2, 4, STEPS]
    assert [row["step"] for row in stepped] == list(range(1, STEPS + 1))
    for row, names in [(row, EVALUATED) for row in evaluated] + [(row, MEASURED) for row in stepped]:
        assert not [name for name in names if not isinstance(row.get(name), float)]
    written = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert written == ["step-00000002", "step-00000004", "step-00000005"]
    for name in ("config.yaml", "metrics.jsonl", "tokenizer.model", "wandb_run_id"):
        assert (run_dir / name).stat().st_size > 0, name
    assert (run_dir / "train.log").is_file()
    assert (run_dir / "report.html").is_file() == (importlib.util.find_spec("plotly") is not None)
    loads = [json.loads(line) for line in (run_dir / "loads.jsonl").read_text().splitlines()]
    assert [row["step"] for row in loads] == [row["step"] for row in stepped]
    for load, row in zip(loads, stepped, strict=True):
        for modality in MODALITIES:
            largest = max(load["layer01"][modality])
            assert largest == pytest.approx(row[f"routing/layer01/load/{modality}"], abs=1e-3)

    (started,) = records(run_dir, "run")
    assert started["config"]["update"]["layout"] | {"hosts": [], "device": ""} == {
        **{"processes": 2, "nodes": 1, "hosts": [], "device": "", "expert_copies": 1},
    }
    shown = [{name: value for name, value in row.items() if not is_constant(name)} for row in rows]
    history = [record["item"] for record in records(run_dir, "history")]
    tables = [item for item in history if "predictions/zeroshot._type" in item]
    assert [item["step"] for item in tables] == [row["step"] for row in evaluated]
    others = [item for item in history if item not in tables]
    curves = [{name: value for name, value in item.items() if not name.startswith(("_", "experts/"))} for item in others]
    assert curves == shown
    assert len(list((run_dir / "predictions").glob("step-*.html"))) == len(evaluated)
    loads = [json.loads(line) for line in (run_dir / "loads.jsonl").read_text().splitlines()]
    assert [row["step"] for row in loads] == [row["step"] for row in stepped]
    for metrics, load in zip(stepped, loads, strict=True):
        for modality, load_e in load["layer01"].items():
            assert sum(load_e) == pytest.approx(len(load_e), abs=1e-3), "the even share is 1"
            assert max(load_e) == pytest.approx(metrics[f"routing/layer01/load/{modality}"], abs=1e-4)
    heat_maps = [item["experts/layer01/load/text.values"] for item in history if "experts/layer01/load/text.values" in item]
    assert heat_maps == [pytest.approx(load["layer01"]["text"], abs=1e-4) for load in loads]
    best = max(row["eval/zeroshot/top1"] for row in evaluated)
    assert last_summary(run_dir)["eval/zeroshot/top1"] == {"max": best, "last": evaluated[-1]["eval/zeroshot/top1"]}
    (artifact,) = (record for record in records(run_dir, "artifact") if record["type"] == "model")
    assert {f"step-{STEPS}", "last"} <= set(artifact["aliases"])
