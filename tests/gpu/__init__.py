"""What only a GPU can show; skipped where there is none. `benchmarks/gpu.sh` runs them, and others on a GPU."""
