"""What README and docs name is there: links, paths, modules, commands, keys of the configuration, metrics."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.config.compose import CONF, GROUPS, KEYS, OPEN_KEYS, compose_config
from trainer.config.schema import Config
from trainer.dashboard.panels import unseen

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").glob("*.md"))
FOLDERS = ("benchmarks", "conf", "docs", "model", "slurm", "tests", "trainer")
FILES_LIKE_KEYS = ("train.log", "model.safetensors")
PLACEHOLDER = re.compile(r"[*…<>{}]|[A-Z]{3,}|site\.env$")
"""What stands for something of the reader's own."""

HISTORY = ROOT / "CHANGELOG.md"
"""Names what has gone too."""
each_doc = pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)


def code_blocks(text: str) -> list[str]:
    """What stands between fences, whatever they are indented by."""
    return re.findall(r"^ *```\w*\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL)


def code_spans(text: str) -> list[str]:
    """What stands between single backticks, outside of fences."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL))


def code(text: str) -> str:
    """All code of a page."""
    return "\n".join([*code_blocks(text), *code_spans(text)])


def anchors(page: Path) -> set[str]:
    """The anchors that a code host gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> Iterator[list[str]]:
    """The command lines of a page, as a shell would cut them."""
    lines = [line for block in code_blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    for line in lines + code_spans(text):
        try:
            yield shlex.split(line, comments=True)
        except ValueError:  # no command: a table with an apostrophe
            continue


def overrides_of(words: list[str], program: str) -> list[str] | None:
    """What a command line gives to a program of ours; None when it starts another."""
    if program not in words:
        return None
    behind = words[words.index(program) + 1 :]
    return [word for word in behind if "=" in word and not word.startswith("-") and word != "…"]


@each_doc
def test_links_lead_somewhere(doc):
    text = doc.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        page = (doc.parent / path).resolve() if path else doc
        assert page.exists(), f"{doc.name} links to {target}"
        if anchor:
            assert anchor in anchors(page), f"{doc.name} links to {target}"


@each_doc
def test_paths_exist(doc):
    for path in re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./…*<>{{}}-]*", code(doc.read_text())):
        if not PLACEHOLDER.search(path) and doc != HISTORY:
            assert (ROOT / path.rstrip(".")).exists(), f"{doc.name} names {path}"


@each_doc
def test_modules_exist(doc):
    for name in re.findall(r"(?<![\w./-])((?:trainer|tests)(?:\.[a-z_0-9]+)+)", code(doc.read_text())):
        parts = name.split(".")
        if parts[-1] in ("py", "md", "sbatch"):
            continue
        found = importlib.util.find_spec(name) if importlib.util.find_spec(".".join(parts[:-1])) else None
        assert found, f"{doc.name} names the module {name}"


@each_doc
def test_keys_exist(doc):
    groups = "|".join(key for key in KEYS if any(other.startswith(f"{key}.") for other in KEYS) and "." not in key)
    text = code(doc.read_text())
    given = re.findall(rf"(?<![\w./-])((?:{groups})(?:\.[a-z_0-9]+)+)=", text)
    alone = [span for span in code_spans(doc.read_text()) if re.fullmatch(rf"(?:{groups})(?:\.[a-z_0-9]+)+", span)]
    for key in given + [span for span in alone if span not in FILES_LIKE_KEYS]:
        known = key in KEYS or key.startswith(tuple(f"{name}." for name in OPEN_KEYS))
        is_module = importlib.util.find_spec(key) is not None if key.startswith("model.") else False
        is_function = key == "model.load"
        assert known or is_module or is_function, f"{doc.name} names the key {key}"


@each_doc
def test_choices_exist(doc):
    for group, choice in re.findall(rf"(?<![\w./-])({'|'.join(GROUPS)})=([\w*…]+)", code(doc.read_text())):
        if not PLACEHOLDER.search(choice):
            assert (CONF / group / f"{choice}.yaml").is_file(), f"{doc.name} names {group}={choice}"


@each_doc
def test_training_commands_compose(doc):
    for words in commands(doc.read_text()):
        for program in ("trainer.train", "trainer.describe", "slurm/train.sbatch"):
            overrides = overrides_of(words, program)
            several = program in words and "-m" in words[words.index(program) :]
            if overrides is not None and not several and not any(word.endswith("=NAME") for word in overrides):
                assert isinstance(compose_config(overrides), Config), f"{doc.name}: {shlex.join(words)}"


@each_doc
def test_make_targets_exist(doc):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for target in re.findall(r"(?:^|[`(\s])make ([a-z][a-z-]*)", code(doc.read_text())):
        assert target in targets, f"{doc.name} names make {target}"


@each_doc
def test_installed_commands_exist(doc):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name in re.findall(r"\blimoe-(?!trainer)[a-z]+(?:-[a-z]+)*\b", code(doc.read_text())):
        if not name.startswith("limoe-lr"):  # a run
            assert name in scripts, f"{doc.name} names {name}"


def test_names_of_the_code_in_the_tour_exist():
    source = "\n".join(path.read_text() for folder in ("model", "trainer") for path in (ROOT / folder).rglob("*.py"))
    words = set(re.findall(r"\w+", source))
    for span in code_spans((ROOT / "docs" / "architecture.md").read_text()):
        name = span.partition("(")[0].rpartition(".")[2]
        if re.fullmatch(r"[A-Za-z_]\w{3,}", name) and "/" not in span and not span.endswith((".sbatch", ".py")):
            assert name in words, f"docs/architecture.md names {span}"


def test_every_page_is_reached_from_the_readme():
    linked = set(re.findall(r"\]\(([\w./-]+\.md)", (ROOT / "README.md").read_text()))
    assert {str(doc.relative_to(ROOT)) for doc in DOCS} - linked == {"README.md"}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170


def test_every_experiment_is_named_in_the_readme_or_is_a_sweep_named_on_its_page():
    readme = (ROOT / "README.md").read_text() + (ROOT / "docs" / "sweeps.md").read_text()
    for experiment in (CONF / "experiment").glob("*.yaml"):
        assert f"`{experiment.stem}`" in readme, experiment.stem


def test_the_picture_of_the_architecture_is_what_its_script_draws():
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "pictures" / "architecture.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, picture in script.pictures().items():
        assert (ROOT / "docs" / "pictures" / name).read_text() == picture, f"run python docs/pictures/architecture.py for {name}"


@pytest.mark.slow
def test_the_debug_experiment_runs_and_every_metric_it_writes_is_explained(tmp_path):
    command = [
        sys.executable,
        "-m",
        "trainer.train",
        "experiment=debug",
        f"run.dir={tmp_path}/run",
        f"data.cache={tmp_path}/cache",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows if "eval/zeroshot/top1" in row} == {0, 4, 8}
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"step-00000004", "step-00000008"}

    explained = set(code_spans((ROOT / "docs" / "metrics.md").read_text()))
    written = {name for row in rows for name in row} - {"step"}
    assert written
    assert {name for name in written if general(name) not in explained} == set()
    assert unseen(written) == [], "a panel of trainer.dashboard"


def general(metric: str) -> str:
    """The name under which docs/metrics.md explains a metric: one layer, modality, set and number of shots for all."""
    metric = re.sub(r"/layer\d+/", "/layer03/", metric).replace("zeroshot_unseen", "zeroshot").removesuffix("_chance")
    metric = re.sub(r"/\d+shot_", "/10shot_", metric)
    return re.sub(r"(?<=[/_])image$", "text", metric)
