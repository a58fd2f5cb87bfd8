"""Training shards from what people have: images with captions beside them, tables, other shards."""
