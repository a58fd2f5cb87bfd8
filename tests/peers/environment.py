"""Programs in the peers' environment."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".peers-venv"
needs_peers = pytest.mark.skipif(not (PEERS / ".ready").exists(), reason="needs CLIP_benchmark and open_clip: make peers")


def run_among_peers(module: str, *arguments: str, folder: Path) -> str:
    """What a module of ours prints when it is run in `folder` with these arguments."""
    command = [str(PEERS / "bin" / "python"), str(ROOT / "tests" / "peers" / "start.py"), module, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout
