"""The command line as Hydra documents it, and what of Hydra's is not used here and says so."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from tests.trainer.launch.conftest import no_run
from trainer.config.compose import CONF
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.launch.hydra_app import parse_arguments, run_app

ROOT = Path(__file__).parents[3]


def composed(*arguments: str) -> Config:
    """The configuration with which a command line would train."""
    kept: list[Config] = []
    assert run_app(list(arguments), kept.append) == 0
    (config,) = kept
    return config


@pytest.fixture
def folder(here: Path) -> Path:
    """A user's own configurations."""
    files = {
        "experiment/mine.yaml": "# @package _global_\nseed: 5\nrun:\n  name: mine\n",
        "optimiser/fast.yaml": "# @package optim\nlr: 0.5\n",
        "own.yaml": "defaults: [config, _self_]\nseed: 7\n",
        "unknown.yaml": "defaults: [config, _self_]\ncolour: red\n",
        "elsewhere.yaml": "defaults: [config, _self_]\nhydra:\n  run:\n    dir: outputs\n",
    }
    for name, text in files.items():
        path = here / "cfg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return here / "cfg"


def test_flags_may_stand_anywhere():
    given = parse_arguments(["seed=1", "--config-dir", "x", "optim.lr=2", "-m", "run.name=a"])
    assert (given.overrides, given.config_dir, given.multirun) == (["seed=1", "optim.lr=2", "run.name=a"], "x", True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--multirn"], "there is no flag --multirn (did you mean '--multirun'?)"),
        (["--cfg", "jbo"], "invalid choice: 'jbo'"),
        (["--config-dir"], "expected one argument"),
        (["--config-dir", "/nowhere"], "'/nowhere' not found"),
        (["--config-name", "nothing"], "nothing"),
        (["--config-path", "/nowhere"], "/nowhere"),
        (["--resolve"], "The --resolve flag can only be used"),
        (["train.stpes=1"], "the configuration has no key 'train.stpes' (did you mean 'train.steps'?)"),
        (["seed=0,1"], "add -m to train with each in turn"),
        (["hydra.sweep.dir=x"], "is for sweeps: add -m"),
        (["hydra/sweeper=basic"], "is for sweeps: add -m"),
        (["hydra/launcher=slurm"], "is for sweeps: add -m, or submit a single run with sbatch"),
        (["hydra.run.dir=x"], "hydra.run.dir is not used here: the directory of a run is run.dir"),
        (["hydra.output_subdir=.hydra"], "hydra.output_subdir is not used here"),
        (["hydra.job.chdir=true"], "hydra.job.chdir=true is not possible here"),
        (["hydra/job_logging=default"], "hydra/job_logging=default is not used here"),
        (["hydra.jbo.name=x"], "did you mean 'hydra.job'?"),
        (["hydra.job.env_copy=[NO_SUCH_VARIABLE]"], "NO_SUCH_VARIABLE"),
        (["--experimental-rerun", "/nowhere.pickle"], "/nowhere.pickle does not exist"),
        (["run.name=${oc.env:NO_SUCH_VARIABLE}"], "NO_SUCH_VARIABLE"),
        (["--config-dir", "~nobody-of-this-name/x"], "the home directory of '~nobody-of-this-name' is unknown"),
        (["--config-path", "$NO_SUCH_VARIABLE/x"], "the environment variable $NO_SUCH_VARIABLE is not set"),
        *(([f"~{group}"], f"every run has one {group}: choose ") for group in ("model", "router", "data", "schedule")),
        (["~router=limoe"], "every run has one router"),
        (["router=null"], "every run has one router: choose classic, expert_choice, limoe"),
        (["model=5"], "every run has one model: choose "),
        (["~experiment"], "leave experiment= out"),
        (["experiment=null"], "leave experiment= out"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(here: Path, arguments: list[str], told: str):
    with pytest.raises(UserError) as caught:
        run_app(arguments, no_run)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(here.iterdir())


def test_a_folder_of_the_user_s_own_adds_experiments_and_groups(folder: Path):
    config = composed("--config-dir", "cfg", "experiment=mine", "+optimiser=fast")
    assert (config.seed, config.run.dir, config.optim.lr) == (5, "runs/mine", 0.5)
    config = composed("hydra.searchpath=[file://cfg]", "experiment=mine", "+optimiser=fast")
    assert (config.seed, config.optim.lr) == (5, 0.5)
    with pytest.raises(UserError, match=r"experiment=mien' does not exist \(did you mean 'mine'\?\)"):
        run_app(["--config-dir", "cfg", "experiment=mien"], no_run)


def test_a_folder_of_the_user_s_own_is_a_path_like_any_other(folder: Path):
    (Path.home() / "mine").symlink_to(folder)
    for where in ("--config-dir=~/mine", "--config-dir=$HOME/mine", f"--config-dir=file://{folder}"):
        assert composed(where, "experiment=mine", "+optimiser=fast").optim.lr == 0.5


@pytest.mark.parametrize("choice", ["experiment=demo", "experiment=[mine,demo]", "experiment=mine,demo"])
def test_a_file_of_ours_never_hides_one_of_the_user_s_silently(folder: Path, choice: str):
    (folder / "experiment" / "demo.yaml").write_text("# @package _global_\nseed: 6\n")
    with pytest.raises(
        UserError, match=r"comes before cfg/experiment/demo\.yaml: give yours another name, or use --config-path cfg"
    ):
        run_app(["--config-dir", "cfg", "-m", choice], no_run)
    assert composed("--config-path", "cfg", "experiment=demo").seed == 6
    assert composed("--config-dir", "cfg", "experiment=mine").seed == 5


def test_several_choices_of_a_group_go_together(folder: Path):
    (folder / "experiment" / "more.yaml").write_text("# @package _global_\ntrain:\n  steps: 9\n")
    config = composed("--config-dir", "cfg", "experiment=[mine,more]")
    assert (config.seed, config.train.steps) == (5, 9)


def test_a_file_that_is_no_yaml_is_named_with_its_line(folder: Path):
    (folder / "experiment" / "broken.yaml").write_text("# @package _global_\noptim: {lr: 3\nseed: 1\n")
    with pytest.raises(UserError, match=r"cfg/experiment/broken\.yaml, line 3: "):
        run_app(["--config-dir", "cfg", "experiment=broken"], no_run)


def test_a_mistyped_key_in_a_file_is_named_with_the_file_and_the_near_name(folder: Path):
    (folder / "experiment" / "typo.yaml").write_text("# @package _global_\noptim:\n  lrr: 1\n")
    with pytest.raises(
        UserError, match=r"^In 'experiment/typo': the configuration has no key 'optim.lrr' \(did you mean 'optim.lr'"
    ):
        run_app(["--config-dir", "cfg", "experiment=typo"], no_run)


@pytest.mark.parametrize("where", ["--config-dir", "--config-path", "-cd", "-cp"])
def test_a_primary_configuration_of_the_user_s_own_builds_on_ours(folder: Path, where: str):
    config = composed(where, "cfg", "--config-name", "own", "model=dense_tiny")
    assert (config.seed, config.model.name) == (7, "dense_tiny")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["cfg"], "nothing but what the user put there"


def test_what_a_user_s_configuration_cannot_hold_is_named(folder: Path):
    with pytest.raises(UserError, match="colour"):
        run_app(["--config-dir", "cfg", "-cn", "unknown"], no_run)
    with pytest.raises(UserError, match=r"hydra.run.dir is not used here"):
        run_app(["--config-dir", "cfg", "-cn", "elsewhere"], no_run)
    assert not (folder.parent / "outputs").exists()


def test_what_hydra_tells_a_job_works(here: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[str | None] = []
    code = run_app(["+hydra.job.env_set.COLOUR=red"], lambda config: seen.append(os.environ.get("COLOUR")))
    assert (code, seen) == (0, ["red"])
    assert composed("hydra.job.name=first", "run.name=${hydra:job.name}").run.dir == "runs/first"
    excluded = "hydra.job.config.override_dirname.exclude_keys=[run.name]"
    assert composed("seed=3", excluded, "run.name=${hydra:job.override_dirname}").run.dir == "runs/seed=3"


def test_a_mistake_of_the_run_itself_and_its_exit_code_come_out(here: Path, capfd: pytest.CaptureFixture[str]):
    def refuse(config: Config) -> None:
        raise UserError("no room")

    with pytest.raises(UserError, match="no room"):
        run_app([], refuse)
    assert run_app([], lambda config: sys.exit(85)) == 85
    assert capfd.readouterr() == ("", "")


def test_a_fault_of_ours_keeps_its_traceback(here: Path):
    def fail(config: Config) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_app([], fail)


def test_flags_that_only_tell_something(here: Path, capsys: pytest.CaptureFixture[str]):
    told = {}
    for flags in (
        ["--cfg", "job"],
        ["-c", "job", "-p", "optim", "optim.lr=3"],
        ["--cfg", "job", "--resolve", "run.name=x", "--package", "run"],
        ["--cfg", "hydra"],
        ["--help"],
        ["--hydra-help"],
        ["--info", "defaults"],
    ):
        assert run_app(flags, no_run) == 0
        told[" ".join(flags)] = capsys.readouterr().out
    assert OmegaConf.create(told["--cfg job"]).run.dir == "runs/${run.name}" or "dir: runs/${run.name}" in told["--cfg job"]
    assert "lr: 3" in told["-c job -p optim optim.lr=3"]
    assert "dir: runs/x" in told["--cfg job --resolve run.name=x --package run"]
    assert "docs/sweeps.md" in told["--help"]
    assert "slurm" in told["--hydra-help"]
    with pytest.raises(SystemExit) as ended:
        run_app(["--version"], no_run)
    assert (ended.value.code, capsys.readouterr().out) == (0, f"Hydra {hydra.__version__}\n")
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("schedule=c", "schedule=cosine"), ("optim.l", "optim.lr="), ("hydra/launcher=s", "hydra/launcher=slurm")],
)
def test_a_shell_completes_groups_and_keys(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, offered: str
):
    monkeypatch.setenv("COMP_LINE", f"train.py {typed}")
    assert run_app(["-sc", "query=bash"], no_run) == 0
    assert offered in capsys.readouterr().out.split()


def test_a_rerun_takes_the_configuration_that_hydra_has_pickled(here: Path):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = compose("config", overrides=["seed=9"], return_hydra_config=True)
    (here / "config.pickle").write_bytes(pickle.dumps(values))
    with pytest.warns(UserWarning, match="Experimental rerun"):
        assert composed("--experimental-rerun", "config.pickle").seed == 9


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"], ["seed=0,1"]])
def test_what_trains_nothing_does_not_import_torch(flags: list[str]):
    program = (
        "import sys, trainer.train\n"
        "try: trainer.train.main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'deepspeed', 'wandb') if name in sys.modules])"
    )
    if flags == ["seed=0,1"]:  # told by the part that knows the ranks
        program = program.replace("trainer.train.main()", "trainer.train.run_app(sys.argv[1:], print)").replace(
            "SystemExit", "Exception"
        )
    done = subprocess.run([sys.executable, "-c", program, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
