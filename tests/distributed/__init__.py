"""Tests with several real processes."""

import os

# Read when DeepSpeed is imported, which here is before any process knows its device.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
