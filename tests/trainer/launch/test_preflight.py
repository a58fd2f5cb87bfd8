"""The dry run: a good job prints what it would be, a bad one a line for each thing that is wrong; neither leaves a trace."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from omegaconf import OmegaConf

from model.limoe import LIMoE
from tests.trainer.data.shards_on_disk import pair, small_tokenizer, write_shard, write_shards
from trainer.checkpoint.files import CONFIG, PROGRESS, STATE, TOKENIZER, checkpoint_path, record_of, write_marker
from trainer.config.compose import compose_config
from trainer.config.schema import Config
from trainer.estimate.memory import checkpoint_bytes
from trainer.launch import preflight as dry
from trainer.launch.preflight import Findings, dry_run, examine, space_problems
from trainer.training.directory import METRICS

ROOT = Path(__file__).parents[3]
LAUNCHERS = (
    "WORLD_SIZE",
    "RANK",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_JOB_ID",
    "LIMOE_WAIT",
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A good run on two shards of its own; each test spoils one thing."""
    config = compose_config(["data=webdataset", "log.wandb=disabled", "run.device=cpu", "train.batch_size=8"])
    write_shards(tmp_path, 2, 8)
    config.data.train = f"{tmp_path}/train-{{000..001}}.tar"
    config.data.val = write_shard(tmp_path / "val.tar", [pair(number) for number in range(20, 24)])
    small_tokenizer(tmp_path)
    config.data.tokenizer = str(tmp_path / "t.model")
    config.run.dir = str(tmp_path / "runs" / "new")
    return config


def everything_below(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time of change."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def saved(config: Config, step: int, tokenizer: Path) -> None:
    """A complete checkpoint of the configuration's model, as far as anything but training looks at one."""
    checkpoint = checkpoint_path(Path(config.run.dir), step)
    checkpoint.mkdir(parents=True)
    model = LIMoE(config.model, config.router).initialise(0)
    dcp.save({f"model/{name}": tensor for name, tensor in model.state_dict().items()}, checkpoint_id=checkpoint / STATE)
    (checkpoint / PROGRESS).write_text(f'{{"step": {step}, "pairs": {8 * step}, "streams": 2}}')
    (checkpoint / TOKENIZER).write_bytes(tokenizer.read_bytes())
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    write_marker(checkpoint, {str(path.relative_to(checkpoint)): record_of(path) for path in files})
    (Path(config.run.dir) / METRICS).write_text("{}\n")


def set_to(name: str, value: Any) -> Callable[[Config, Path], None]:
    def spoil(config: Config, folder: Path) -> None:
        group, leaf = name.split(".")
        setattr(getattr(config, group), leaf, value.replace("DIR", str(folder)) if isinstance(value, str) else value)

    return spoil


def a_file_in_the_way(config: Config, folder: Path) -> None:
    (folder / "runs").write_text("precious")


def another_architecture(config: Config, folder: Path) -> None:
    saved(config, 5, folder / "t.model")
    config.model.width *= 2


def other_heads(config: Config, folder: Path) -> None:
    """The tensors have the same shapes, but are another function."""
    saved(config, 5, folder / "t.model")
    (checkpoint_path(Path(config.run.dir), 5) / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    config.model.heads //= 2


def a_damaged_checkpoint(config: Config, folder: Path) -> None:
    saved(config, 5, folder / "t.model")
    (checkpoint_path(Path(config.run.dir), 5) / PROGRESS).write_text("{")


def set_to_top(name: str, value: str) -> Callable[[Config, Path], None]:
    def spoil(config: Config, folder: Path) -> None:
        setattr(config, name, value.replace("DIR", str(folder)))

    return spoil


def test_a_good_run_is_told_and_nothing_is_left(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = everything_below(tmp_path)
    assert dry_run(config) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for part in (
        "ready to run",
        "new, 1000 steps",
        "2 shards",
        "retrieval on 1 shards",
        "t.model",
        "activations",
        "disabled",
    ):
        assert part.replace(" ", "") in "".join(said.out.split()), part  # long paths are folded
    assert everything_below(tmp_path) == before


def test_what_is_frozen_is_told(config: Config, capsys: pytest.CaptureFixture[str]):
    config.train.freeze = ["patches.*", "tokens.*", "towers.0.blocks.0.*"]
    assert dry_run(config) == 0
    assert re.search(r"trained parameters +\S+ \([\d,]+\); \S+ frozen", said := capsys.readouterr().out)
    assert re.search(r"no backward pass +block 0", said)


@pytest.mark.parametrize("pattern", ["towers.2.*", "*"])
def test_what_cannot_be_frozen_is_told_once_beside_other_problems(
    pattern: str, config: Config, capsys: pytest.CaptureFixture[str]
):
    config.train.freeze, config.optim.lr_factors = [pattern], {"tower.*": 0.1}
    assert dry_run(config) == 2
    freeze, factors = sorted(capsys.readouterr().err.splitlines()[:2], reverse=True)
    assert freeze.startswith("error: train.freeze") and factors.startswith("error: optim.lr_factors")


def a_file_for_the_checkpoints(config: Config, tmp_path: Path) -> None:
    (tmp_path / "runs" / "new").mkdir(parents=True)
    (tmp_path / "runs" / "new" / "checkpoints").write_text("a note")


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (set_to("data.train", "DIR/train-{000..003}.tar"), ("data.train", "2 of 4 shards are missing", "train-002.tar")),
        (set_to("data.val", "DIR/none.tar"), ("data.val", "none.tar")),
        (set_to("eval.zeroshot", "DIR/none"), ("eval.zeroshot", "none is not a folder")),
        (set_to("eval.fewshot", "DIR/none"), ("eval.fewshot: no shards match", "none does not exist", "training part")),
        (set_to("data.tokenizer", "DIR/none.model"), ("tokenizer", "none.model")),
        (set_to("data.kind", "shape"), ("data.kind=shape", "shapes")),
        (set_to("data.streams", 3), ("data.streams=3 is more than the 2 shards", "use data.streams=2")),
        (set_to("model.vocabulary", 50), ("t.model", "model.vocabulary=50")),
        (set_to("optim.lr", -1.0), ("optim.lr=-1.0",)),
        (set_to("schedule.kind", "cosin"), ("schedule.kind=cosin", "cosine")),
        (set_to("log.wandb", "onlin"), ("log.wandb=onlin", "online")),
        (set_to("run.device", "gpu"), ("run.device=gpu",)),
        (a_file_in_the_way, ("the run directory", "runs: Not a directory")),
        (a_file_for_the_checkpoints, ("checkpoints cannot be used (Not a directory)",)),
        (another_architecture, ("step-00000005", "another architecture")),
        (
            other_heads,
            ("step-00000005", "belongs to another model (model.heads was 4, is 2): use model.heads=4, or start a new run"),
        ),
        (a_damaged_checkpoint, ("none of the 1 checkpoints", "progress.json has 1 bytes")),
        (set_to_top("init_from", "DIR/nothing"), ("init_from=", "no complete checkpoint there")),
        (set_to_top("resume", "DIR/nothing"), ("resume=", "no complete checkpoint there")),
    ],
)
def test_what_would_end_a_run_is_one_line_and_nothing_is_left(
    config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Config, Path], None],
    parts: tuple[str, ...],
):
    spoil(config, tmp_path)
    before = everything_below(tmp_path)
    assert dry_run(config) == 2
    said = capsys.readouterr()
    assert said.out == ""
    first, *rest = [line for line in said.err.splitlines() if not line.startswith("WARNING: ")]
    assert first.startswith("error: ")
    assert all(part in first for part in parts), first
    assert rest == ["checked for one process; to check for N, put WORLD_SIZE=N before the command"]
    assert everything_below(tmp_path) == before


def test_all_problems_are_told(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config.optim.lr, config.data.train, config.data.val = 0.0, str(tmp_path / "none.tar"), str(tmp_path / "nor.tar")
    config.parallel.zero_stage, config.resume = 0, "nowhere"
    assert dry_run(config) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 5
    for part in ("zero_stage=0", "optim.lr=0.0", "none.tar", "nor.tar", "resume=nowhere"):
        assert sum(part in line for line in errors) == 1, part


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"WORLD_SIZE": "3"}, "3 processes"),
        ({"SLURM_NTASKS": "5"}, "5 processes"),
        ({"SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS_PER_NODE": "3", "SLURM_NTASKS": "3"}, "9 processes"),
        ({"SLURM_JOB_NUM_NODES": "3"}, "3 processes"),
    ],
)
def test_the_layout_is_checked_for_the_allocation(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environment: dict[str, str], told: str
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert dry_run(config) == 2
    said = capsys.readouterr().err
    assert f"train.batch_size=8 (global) is not divisible by {told}" in said
    assert "checked for one process" not in said


def test_a_run_that_goes_on_says_from_where(config: Config, tmp_path: Path):
    saved(config, 7, tmp_path / "t.model")
    found = examine(config, 1)
    assert found.problems == []
    assert dict(found.rows)["run"] == "continues from step 7, 993 steps left"
    # The next checkpoint takes the second place of two, and one is written before the first goes.
    assert found.disk == 2 * checkpoint_bytes(config)


def test_a_run_that_begins_with_the_weights_of_another_has_its_tokenizer(config: Config, tmp_path: Path):
    saved(config, 7, tmp_path / "t.model")
    old, config.run.dir, config.data.tokenizer = config.run.dir, str(tmp_path / "runs" / "next"), None
    config.init_from = old
    rows = dict(examine(config, 1).rows)
    assert rows["run"] == f"new, 1000 steps, with the weights of {checkpoint_path(Path(old), 7)}"
    assert rows["tokenizer"].startswith(str(checkpoint_path(Path(old), 7) / TOKENIZER))
    config.model.width *= 2
    assert "another architecture" in " ".join(examine(config, 1).problems)


def test_a_run_that_upcycles_a_dense_one_says_what_it_takes(config: Config, tmp_path: Path):
    config.model.expert_layers = []
    saved(config, 7, tmp_path / "t.model")
    old = Path(config.run.dir)
    (checkpoint_path(old, 7) / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    config.init_from, config.run.dir, config.data.tokenizer = str(old), str(tmp_path / "runs" / "next"), None
    config.model.expert_layers = [1, 3]
    found = examine(config, 1)
    assert found.problems == []
    names = [what for what, _ in found.rows]
    assert names[names.index("run") + 1 :][:4] == [
        "  taken as it is",
        "  copied into 8 experts each",
        "  new",
        "  at the start",
    ]
    config.model.shared_experts = 1
    assert "model.shared_experts=1 cannot start from the dense run" in " ".join(examine(config, 1).problems)


def test_a_run_with_biases_of_its_routers_goes_on(config: Config, tmp_path: Path):
    config.router.bias.kind, config.router.aux.load = "shared", 0.0
    saved(config, 7, tmp_path / "t.model")
    found = examine(config, 1)
    assert found.problems == []
    assert dict(found.rows)["run"].startswith("continues from step 7")


def test_a_resume_keeps_the_streams_of_its_data_unless_it_is_told_others(config: Config, tmp_path: Path):
    saved(config, 7, tmp_path / "t.model")
    config.data.workers = 2
    assert examine(config, 2).problems == [], "readers may share streams"
    config.data.streams = 3
    (told,) = examine(config, 2).problems
    assert told.startswith("data.streams=3 is more than the 2 shards: use data.streams=2")
    config.data.streams = 2
    assert examine(config, 2).problems == []


def test_the_embedded_data_set_need_not_be_there_and_is_not_written(config: Config, tmp_path: Path):
    config.data.kind, config.data.train, config.data.val, config.data.cache = "shapes", None, None, str(tmp_path / "cache")
    found = examine(config, 1)
    assert found.problems == []
    assert f"16 shards, 1 reader per process, to be written into {tmp_path}/cache/shapes-" in dict(found.rows)["training data"]
    assert not (tmp_path / "cache").exists()
    config.data.streams = 17
    assert "data.streams=17 is more than the 16 shards" in examine(config, 1).problems[0]


def test_the_runs_of_a_file_system_share_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = type("usage", (), {"free": 100 * 2**30})
    monkeypatch.setattr(dry.shutil, "disk_usage", lambda place: usage)
    runs = [Findings(tmp_path / name, disk=40 * 2**30) for name in ("a", "b", "c")]
    assert space_problems(runs[:2]) == []
    (told,) = space_problems(runs)
    assert "checkpoints need 120 GiB" in told
    assert "100 GiB are free" in told


def test_checkpoints_that_are_never_deleted_need_room_too(config: Config, tmp_path: Path):
    config.run.dir, config.train.steps = str(tmp_path / "new"), 1000
    config.checkpoint.keep, config.checkpoint.every_steps = 2, 100
    size = checkpoint_bytes(config)
    assert examine(config, 1).disk == 3 * size
    config.checkpoint.best, config.checkpoint.keep_every = "eval/retrieval/i2t_r1", 250  # of which 500 and 1000 are saved
    assert examine(config, 1).disk == 6 * size


def test_a_cache_that_cannot_be_written_is_told_before_the_start(config: Config, tmp_path: Path):
    (tmp_path / "file").touch()
    config.data.kind, config.data.train, config.data.val, config.data.cache = "shapes", None, None, str(tmp_path / "file")
    (told,) = [problem for problem in examine(config, 1).problems if "data.cache" in problem]
    assert "cannot be written there" in told and "file is not a folder" in told


def test_a_model_larger_than_the_gpu_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch):
    properties = type("properties", (), {"total_memory": 2**20})
    monkeypatch.setattr(dry, "choose_device", lambda wanted, local_rank: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Small")
    (told,) = examine(config, 1).problems
    assert "but its GPU has 1.0 MiB: no other layout of these processes fits either" in told


def test_a_run_too_large_for_the_gpus_of_the_job_is_refused_with_what_fits(config: Config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config.run.device = "auto"
    config.train.batch_size = 4096
    config.run.gpu_memory_gib = 80
    assert examine(config, 1).problems == []
    config.run.gpu_memory_gib = 4
    (told,) = examine(config, 1).problems
    assert "but its GPU has 4.0 GiB: add " in told
    advice = told.partition(": add ")[2].partition(", which needs")[0].split()
    assert advice
    for override in advice:
        key, _, value = override.partition("=")
        part, _, leaf = key.partition(".")
        setattr(getattr(config, part), leaf, type(getattr(getattr(config, part), leaf))(value))
    assert examine(config, 1).problems == []


def test_an_unknown_gpu_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch):
    config.run.gpu_memory_gib = "H999"
    assert "run.gpu_memory_gib=H999" in examine(config, 1).problems[0]


def test_a_gpu_that_is_missing_here_is_missed_only_inside_the_allocation(config: Config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config.run.device = "cuda"
    assert examine(config, 1).problems == []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "run.device=cuda, but torch finds no CUDA device here" in examine(config, 1).problems[0]


def test_other_ranks_leave_the_word_to_the_first(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    config.optim.lr = -1.0
    assert dry_run(config) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_the_program_checks_and_leaves_no_trace(tmp_path: Path):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2"}
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        environment.pop(name, None)
    for overrides, code, part in (([], 0, "ready to run"), (["optim.beta1=2", "log.wandb=online"], 2, "optim.beta1=2.0")):
        command = [sys.executable, "-m", "trainer.train", "experiment=demo", "run.dry=true", *overrides]
        done = subprocess.run(command, capture_output=True, text=True, cwd=here, env=environment)
        assert done.returncode == code, done.stderr
        assert part in (done.stderr if code else done.stdout)
        assert everything_below(tmp_path).keys() == {str(home), str(here)}


@pytest.mark.parametrize(
    ("wait", "told"),
    [
        ("75", None),
        ("0", None),
        ("74", "parallel.lost_after_seconds=60: srun ends all tasks 74 s after the first.*set LIMOE_WAIT=75 or more"),
        ("1:30", "LIMOE_WAIT=1:30 in the environment must be a whole number of seconds"),
    ],
)
def test_srun_waits_until_a_lost_rank_can_be_named(config: Config, monkeypatch: pytest.MonkeyPatch, wait: str, told: str | None):
    monkeypatch.setenv("LIMOE_WAIT", wait)
    problems = examine(config, world=1).problems
    assert len(problems) == bool(told)
    assert not told or re.match(told, problems[0])
