"""DeepSpeed around the model: the only room that knows it (but for bench)."""
