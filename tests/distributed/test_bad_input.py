"""Bad input to the whole program: one line that says what is wrong, a non-zero exit, no hang, and nothing lost."""

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.distributed.program import TINY, Ended, contents, run
from trainer.checkpoint.files import complete_checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the embedded data set is written once for all runs of this file."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The run directory of a run of one step."""
    folder = tmp_path_factory.mktemp("trained")
    done = run([*TINY, f"data.cache={cache}", f"run.dir={folder / 'run'}", "train.steps=1"], folder / "log")
    assert done.code == 0, done.output
    return folder / "run"


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run for one test to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Programs started meanwhile cannot write more into a file, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def the_line(done: Ended, code: int = 2) -> str:
    """The one line of a program that ended with a user's mistake."""
    assert done.code == code, done.output
    assert len(done.errors) == 1, done.output
    return done.errors[0]


def test_a_normal_run_prints_its_own_lines_alone(trained: Path):
    lines = (trained.parent / "log").read_text().splitlines()
    foreign = [line for line in lines if any(word in line.lower() for word in ("warn", "deprecat", "deepspeed", "hydra"))]
    assert not foreign
    assert sum(line.startswith("step 1/1") for line in lines) == 1


def test_the_log_of_a_normal_run_tells_its_steps_and_nothing_foreign(trained: Path):
    lines = (trained / "train.log").read_text().splitlines()
    assert sum(" INFO trainer.reporting.bar: step 1/1 " in line for line in lines) == 1
    assert not [line for line in lines if " trainer." not in line]


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("train.stpes=3", "error: 'train.stpes=3': the configuration has no key 'train.stpes' (did you mean 'train.steps'?)"),
        ("model.experts=3", "error: model.experts=3 is not divisible by parallel.expert_parallel=2"),
        ("data.tokenizer=/nowhere/t.model", "error: tokenizer /nowhere/t.model: No such file or directory"),
    ],
    ids=["before the processes join", "after they joined", "on the first rank alone"],
)
def test_several_processes_tell_a_mistake_once(tmp_path: Path, cache: Path, mistake: str, told: str):
    arguments = [*TINY, f"data.cache={cache}", f"run.dir={tmp_path / 'run'}", "parallel.expert_parallel=2", mistake]
    done = run(arguments, tmp_path / "log", ranks=2)
    assert the_line(done, code=1).startswith(told)  # torchrun's own exit code
    # torchrun reports at length that a process failed; its report ends with the reason.
    assert done.output.strip().splitlines()[-2].split(" : ", 1)[1].startswith(told)


def test_another_architecture_does_not_go_on_in_the_directory_of_a_run(copy: Path, cache: Path):
    before = contents(copy)
    done = run([*TINY, f"data.cache={cache}", f"run.dir={copy}", "train.steps=2", "model.width=64"], copy.parent / "log")
    assert "belongs to another model (model.width was 32, is 64): use model.width=32, or start a new run" in the_line(done)
    assert contents(copy) == before


def test_a_full_disk_at_the_checkpoint_leaves_the_one_before(copy: Path, cache: Path):
    (kept,) = complete_checkpoints(copy)
    before = contents(kept)
    largest = max(path.stat().st_size for path in copy.rglob("*") if path.is_file())
    with files_of_at_most(largest // 2):
        done = run([*TINY, f"data.cache={cache}", f"run.dir={copy}", "train.steps=2"], copy.parent / "log")
    told = the_line(done)
    assert "the checkpoint of step 2 could not be written" in told
    assert f"{kept.name}, is intact" in told
    assert complete_checkpoints(copy) == [kept]
    assert contents(kept) == before


def test_evaluation_of_a_run_whose_data_are_gone_names_them(copy: Path, cache: Path):
    arguments = [f"run={copy}", "eval.zeroshot=/nowhere", "eval.retrieval=false"]
    done = run(arguments, copy.parent / "log", module="trainer.evaluate")
    assert the_line(done).startswith("error: eval.zeroshot: /nowhere is not a folder")


def test_hydras_flags_tell_a_mistake_in_one_line_too(tmp_path: Path):
    done = run(["train.stpes=3", "--cfg", "job"], tmp_path / "log")
    assert "did you mean 'train.steps'?" in the_line(done)
    assert done.output.splitlines() == done.errors


def test_a_bug_keeps_its_traceback_on_one_rank(tmp_path: Path):
    (tmp_path / "broken.py").write_text(
        "from trainer.config.schema import Config\n"
        "from trainer.distributed.program import run_program\n"
        "def work(processes):\n"
        "    raise IndexError(f'a bug, rank {processes.rank}')\n"
        "config = Config()\n"
        "config.run.device = 'cpu'\n"
        "run_program(config, work)\n"
    )
    done = run([], tmp_path / "log", ranks=2, module="broken")
    assert done.code == 1
    assert done.output.count("in work") == 1, done.output
    assert len(done.errors) == 1
    assert "IndexError: a bug, rank" in done.errors[0]
