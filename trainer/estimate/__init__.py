"""Arithmetic before a run: memory, disk and bytes sent."""
