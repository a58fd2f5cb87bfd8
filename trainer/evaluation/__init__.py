"""What the model can do, measured by all ranks together: zero-shot classification and retrieval."""
