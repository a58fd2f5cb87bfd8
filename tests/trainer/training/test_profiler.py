"""Steps recorded in detail."""

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.config import ModelConfig, RouterConfig
from model.limoe import LIMoE
from model.regions import region
from trainer.config.schema import TrainConfig
from trainer.distributed.processes import ALONE
from trainer.training.profiler import StepProfiler


def run(folder: Path, profile: str | None, steps: range, rank: int = 0, ranks: tuple[int, ...] = (0,)) -> list[str]:
    """A start of a run that takes these steps; what it tells."""
    profiler = StepProfiler(
        TrainConfig(profile=profile, profile_ranks=list(ranks)), folder, replace(ALONE, rank=rank), steps[0] - 1
    )
    told = []
    for number in steps:
        with profiler.step(number), region(f"work {number}"):
            torch.ones(3).sum()
        told += filter(None, [profiler.told(number)])
    profiler.close()
    return told


def names_in(trace: Path) -> Counter[str]:
    """What a trace marks, and how often."""
    with gzip.open(trace) as file:
        return Counter(event["name"] for event in json.load(file)["traceEvents"] if event.get("cat") == "user_annotation")


def recorded(folder: Path) -> dict[str, list[int]]:
    """The traces in a run directory, and the steps in each."""
    found = {}
    for trace in folder.rglob("*.json.gz"):
        steps = [int(name.removeprefix("work ")) for name in names_in(trace) if name.startswith("work ")]
        found[str(trace.relative_to(folder))] = sorted(steps)
    return found


@pytest.mark.parametrize(
    ("profile", "steps", "place", "expected"),
    [
        ("3:4", range(1, 7), "steps-3-4", [3, 4]),
        ("1:2", range(1, 4), "steps-1-2", [1, 2]),  # nothing comes before it
        ("6:6", range(1, 7), "steps-6-6", [6]),
        ("3:6", range(5, 8), "steps-5-6", [5, 6]),  # resumed within it
        ("3:9", range(1, 6), "steps-3-5", [3, 4, 5]),  # stopped within it
    ],
)
def test_these_steps_are_in_the_trace_and_no_others(
    tmp_path: Path, profile: str, steps: range, place: str, expected: list[int], recwarn: pytest.WarningsRecorder
):
    told = run(tmp_path, profile, steps)
    assert recorded(tmp_path) == {f"profile/{place}/rank-0.pt.trace.json.gz": expected}
    assert not list(recwarn)
    last = int(profile.partition(":")[2])
    assert len(told) == (last in steps)
    assert all(str(tmp_path / "profile" / place) in line and "no memory snapshot" in line for line in told)


@pytest.mark.parametrize(("profile", "steps", "rank"), [(None, range(1, 4), 0), ("3:4", range(5, 9), 0), ("2:3", range(1, 5), 1)])
def test_nothing_is_recorded_without_it_by_a_run_resumed_past_it_and_by_another_rank(
    tmp_path: Path, profile: str | None, steps: range, rank: int
):
    told = run(tmp_path, profile, steps, rank)
    assert not list(tmp_path.iterdir())
    assert bool(told) == (rank == 1), "rank 0 tells of other ranks' profiles too"


def test_a_full_disk_loses_the_profile_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "profile").write_text("in the way")
    run(tmp_path, "1:2", range(1, 4))
    assert "could not be written" in caplog.text
    assert "training continues" in caplog.text


def test_the_memory_of_a_gpu_is_recorded_and_no_longer_than_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[object] = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda enabled="all", **_: calls.append(enabled))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: calls.append(Path(path).name))
    on_gpu = replace(ALONE, device=torch.device("cuda:0"))
    profiler = StepProfiler(TrainConfig(profile="2:2"), tmp_path, on_gpu, 0)
    for number in (1, 2, 3):
        with profiler.step(number):
            calls.append(number)
    profiler.close()
    assert calls == ["all", 1, 2, "rank-0.memory.pickle", None, 3]
    assert "memory_viz" in str(profiler.told(2))


def test_the_parts_of_an_expert_layer_are_named_in_a_trace_and_free_without_one(monkeypatch: pytest.MonkeyPatch):
    config = ModelConfig(width=8, mlp=8, heads=1, layers=2, expert_layers=[1], experts=2, vocabulary=8, embedding=8)
    model = LIMoE(config, RouterConfig()).initialise(0)
    texts = torch.ones(2, 4, dtype=torch.int64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        model(texts=texts)
    found = Counter({event.key: event.count for event in profiled.key_averages()})
    expected = {"route": 1, "dispatch": 1, "exchange": 2, "experts": 1, "combine": 1}
    assert {name: found[name] for name in expected} == expected
    monkeypatch.setattr(torch.profiler, "record_function", None)  # not even made
    model(texts=texts)
