"""The walls of the house: what may import what. Nothing here is imported; the source is read."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
GROUND = ("errors", "files", "output")
ROOMS = (
    *GROUND,
    "config",
    "reporting",
    "data",
    "distributed",
    "estimate",
    "evaluation",
    "engine",
    "checkpoint",
    "training",
    "launch",
)
"""The modules that all rooms stand on, then the rooms of trainer/ from the ground up: each may import those before it.

What is not among them is a command.
"""


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room_of(module: str) -> int:
    """The height of a module of trainer; commands are above all rooms."""
    name = module.split(".")[1]
    return ROOMS.index(name) if name in ROOMS else len(ROOMS)


def test_each_room_imports_only_rooms_below_it():
    upward = []
    for path in sorted((ROOT / "trainer").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module == "trainer.__init__":
            continue
        for imported in sorted(name for name in imports_of(path) if name.startswith("trainer.")):
            if room_of(imported) > room_of(module):
                upward.append(f"{module} imports {imported}")
    assert not upward


def test_every_room_is_there_and_says_in_a_sentence_what_it_is():
    for room in ROOMS[len(GROUND) :]:
        tree = ast.parse((ROOT / "trainer" / room / "__init__.py").read_text())
        assert ast.get_docstring(tree) and len(tree.body) == 1, f"trainer/{room}/__init__.py: one sentence, no re-exports"


def test_the_model_knows_no_ranks_no_deepspeed_no_hydra_and_no_trainer():
    strangers = ("trainer", "deepspeed", "hydra", "omegaconf", "wandb", "webdataset", "torch.distributed")
    for path in sorted((ROOT / "model").rglob("*.py")):
        assert not [
            name for name in imports_of(path) if name.split(".")[0] in strangers or name.startswith("torch.distributed")
        ], path


def test_only_the_engine_and_the_benchmarks_know_deepspeed():
    knowing = {
        path.relative_to(ROOT / "trainer").parts[0]
        for path in (ROOT / "trainer").rglob("*.py")
        if any(name.split(".")[0] == "deepspeed" for name in imports_of(path))
    }
    assert knowing <= {"engine", "bench"}


def test_tests_mirror_the_rooms():
    for room in ROOMS[len(GROUND) :]:
        assert list((ROOT / "tests" / "trainer" / room).rglob("test_*.py")), f"tests/trainer/{room}: no tests"


def test_no_module_imports_itself_through_others():
    """Not within a room either, nor by an import inside of a function."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "trainer").rglob("*.py")}
    files |= {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "model").rglob("*.py")}
    imported = {name: imports_of(path) & files.keys() for name, path in files.items()}
    done: set[str] = set()

    def follow(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join([*way[way.index(name) :], name])}"
        if name not in done:
            for further in sorted(imported[name]):
                follow(further, (*way, name))
            done.add(name)

    for name in files:
        follow(name, ())
