"""Run a module as `python -m` does, in the peers' environment: `.peers-venv/bin/python tests/peers/start.py MODULE …`

PyPI's torchvision is built for torch with CUDA. Beside a torch without it, its compiled part cannot be loaded, and its import
fails at the first of the operators that it describes to torch.compile. Image transforms need none of them, so they are declared.
"""

import re
import runpy
import sys
from pathlib import Path

import torch

DECLARED = torch.library.Library("torchvision", "FRAGMENT")


def import_torchvision() -> None:
    """Import it, with or without its compiled operators."""
    while True:
        try:
            import torchvision  # noqa: F401

            return
        except RuntimeError as problem:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(problem))
            if missing is None:
                raise
            DECLARED.define(f"{missing[1]}(Tensor input) -> Tensor")
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]


if __name__ == "__main__":
    import_torchvision()
    sys.path[0] = str(Path(__file__).parents[2])
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
