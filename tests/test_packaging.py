"""What an installation gives: the commands, the packages and the configuration, in a checkout and as a wheel."""

import importlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = (
    "dev", "report", "dashboard", "s3", "gs", "hf", "onnx", "tokenizers", "open-clip", "clip-benchmark", "parquet",
)  # fmt: skip
PINNED = ("requirements.txt", *(f"requirements-{extra}.txt" for extra in EXTRAS))
BUILT_FROM = ("pyproject.toml", "setup.py", "README.md", *PINNED, "model", "trainer", "conf")


def run_elsewhere(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder that is not the project's."""
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, timeout=280)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which a wheel of this tree was installed, without what it depends on."""
    source = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target)]
    done = run_elsewhere([*pip, str(source)], source)
    assert done.returncode == 0, done.stderr
    return target


def test_every_command_is_installed():
    scripts = PROJECT["project"]["scripts"]
    for name, target in scripts.items():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), name
    commands = {path.stem for path in (ROOT / "trainer").glob("*.py") if "\ndef main(" in path.read_text()}
    commands |= {path.parent.name for path in (ROOT / "trainer").glob("*/__main__.py")}
    assert {f"limoe-{command.replace('_', '-')}" for command in commands} == set(scripts)


def test_versions_stand_once():
    assert set(PROJECT["project"]["dynamic"]) == {"dependencies", "optional-dependencies"}
    pinned = {}
    for name in PINNED:
        for line in (ROOT / name).read_text().splitlines():
            requirement = line.partition("#")[0].strip()
            if requirement:
                package, exact, version = requirement.partition("==")
                assert exact and version, f"{name}: {requirement} is not pinned"
                assert package not in pinned, f"{package}: in {name} and in {pinned[package]}"
                pinned[package] = name


@pytest.mark.slow
def test_a_wheel_has_all_modules_and_the_whole_configuration(wheel):
    for package in ("model", "trainer"):
        expected = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")}
        assert expected == {path.relative_to(wheel) for path in (wheel / package).rglob("*.py")}
    expected = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert expected == {path.relative_to(wheel / "trainer" / "conf") for path in (wheel / "trainer" / "conf").rglob("*.yaml")}
    pages = {path.relative_to(ROOT) for path in (ROOT / "trainer").rglob("page.*")}
    assert pages and pages == {path.relative_to(wheel) for path in (wheel / "trainer").rglob("page.*")}
    scripts = {path.name for path in (wheel / "bin").iterdir()}
    assert set(PROJECT["project"]["scripts"]) <= scripts


@pytest.mark.slow
def test_a_wheel_trains_from_any_folder(wheel, tmp_path):
    done = run_elsewhere(
        [sys.executable, str(wheel / "bin" / "limoe-train"), "experiment=debug", f"data.cache={tmp_path}/cache"],
        tmp_path,
        PYTHONPATH=str(wheel),
    )
    assert done.returncode == 0, done.stderr
    assert "debug: 8 steps" in done.stdout
    assert (tmp_path / "runs" / "debug" / "checkpoints" / "step-00000008" / "complete").is_file()


@pytest.mark.slow
def test_a_wheel_cannot_submit_and_says_so(wheel, tmp_path):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\nexit 1\n")
    sbatch.chmod(0o755)
    done = run_elsewhere(
        [sys.executable, "-m", "trainer.train", "-m", "hydra/launcher=slurm", "optim.lr=1e-3,1e-4"],
        tmp_path,
        PYTHONPATH=str(wheel),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "checkout" in done.stderr


def test_another_module_called_model_is_named(tmp_path):
    (tmp_path / "model.py").write_text("")
    done = run_elsewhere([sys.executable, "-m", "trainer.train", "experiment=debug"], tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "model.py") in done.stderr
