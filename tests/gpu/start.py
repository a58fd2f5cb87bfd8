"""Run a module as `python -m` does, its ranks on one GPU, on an older torch too: `python tests/gpu/start.py MODULE …`"""

import os
import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

from tests.distributed.device import like_new_torch, share_one_gpu  # noqa: E402

if __name__ == "__main__":
    like_new_torch()
    share_one_gpu(int(os.environ.get("RANK", "0")))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
