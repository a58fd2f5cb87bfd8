"""What is learned: the LIMoE family in pure PyTorch. Knows no ranks, no DeepSpeed, no Hydra and no files."""
