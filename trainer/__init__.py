"""How it is learned: commands at the top, rooms below."""

import importlib.util
import os
import sys
from pathlib import Path


def _check_model(home: Path) -> None:
    """Leave with one line when another `model` is found before ours, such as a model.py in the current folder."""
    found = importlib.util.find_spec("model")
    origin = Path(found.origin).resolve() if found and found.origin else None
    if origin != home / "model" / "__init__.py":
        where = origin or "nothing"
        print(
            f"error: Python finds {where} under the name 'model', which hides {home / 'model'}: start from another folder, "
            f"or use an environment of its own for this project",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(2)


_check_model(Path(__file__).resolve().parents[1])
# PyTorch reads it when it is imported: its profiler (train.profile) would print a line at each start and end.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
