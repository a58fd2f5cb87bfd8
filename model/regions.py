"""Names for the parts of a step, as they appear in a profiler's trace."""

from contextlib import AbstractContextManager, nullcontext

import torch


def region(name: str) -> AbstractContextManager[object]:
    """Mark what is done inside, if a profiler (torch.profiler, emit_nvtx) is recording; else next to nothing is done.

    Compiled code is not marked: it would be torn apart there.
    """
    if torch.compiler.is_compiling() or not torch.autograd.profiler._is_profiler_enabled:
        return nullcontext()
    return torch.profiler.record_function(name)
