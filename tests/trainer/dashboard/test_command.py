"""The command that makes a project's workspace."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.dashboard.__main__ import read_arguments
from trainer.dashboard.panels import SECTIONS, SYSTEM
from trainer.errors import UserError

needs_the_extra = pytest.mark.skipif(
    importlib.util.find_spec("wandb_workspaces") is None, reason="wandb-workspaces is not installed (the extra `dashboard`)"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "trainer.dashboard", *arguments], capture_output=True, text=True, timeout=120)


def test_without_the_extra_one_line_names_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs wandb-workspaces: pip install "limoe-trainer\[dashboard\]"$'):
        read_arguments(["me/limoe"])


@pytest.mark.parametrize("project", ["limoe", "/limoe", "me/", "a/b/c"])
def test_a_project_without_its_entity_is_refused(project):
    with pytest.raises(UserError, match="must be ENTITY/PROJECT"):
        read_arguments([f"project={project}"])


@needs_the_extra
def test_what_would_be_sent_is_written(tmp_path: Path):
    done = run("me/limoe", "name=Mine", "--to", str(tmp_path / "dashboard.json"))
    assert (done.returncode, done.stderr) == (0, "")
    view = json.loads((tmp_path / "dashboard.json").read_text())
    assert (view["entity"], view["project"], view["displayName"]) == ("me", "limoe", "Mine")
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [section.name for section in (*SECTIONS, SYSTEM)]
    for sent, ours in zip(sections, (*SECTIONS, SYSTEM), strict=True):
        axis = "_absolute_runtime" if ours is SYSTEM else "step"
        configs = [panel["config"] for panel in sent["panels"]]
        assert [(config["chartTitle"], config["metricRegex"], config["xAxis"]) for config in configs] == [
            (panel.title, f"^{panel.metrics}$", axis) for panel in ours.panels
        ]
        places = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in sent["panels"]]
        assert len(set(places)) == len(places), "no panel hides another"


@needs_the_extra
def test_without_a_login_one_line_says_so(tmp_path: Path, monkeypatch):
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    done = run("me/limoe")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "wandb login" in done.stderr
