"""How a run tells people what it does: metrics.jsonl, Weights & Biases, the progress bar, log lines, tables."""
