"""Imported first by the process that loader workers are forked from, never by the training process.

Modules imported here are imported once, not again by every worker.
"""

import signal

import numpy as np  # noqa: F401
import PIL.Image  # noqa: F401
import sentencepiece  # noqa: F401
import torch.utils.data  # noqa: F401

import trainer.data.evaluation
import trainer.data.loader  # noqa: F401
from trainer.data.workers import MAIN_DECIDES

# A cluster signals every process of a job. If this one died, its workers would follow it before the last checkpoint is written.
for number in MAIN_DECIDES:
    signal.signal(number, signal.SIG_IGN)
