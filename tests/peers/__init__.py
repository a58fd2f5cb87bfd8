"""Ours beside open_clip and CLIP_benchmark, in an environment of their own (`make peers`); skipped where there is none."""
