"""From shards to batches: reading, decoding, cropping, tokenizing, in an order that no number of processes changes."""
