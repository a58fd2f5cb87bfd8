"""Shards that are elsewhere: at a URL, in an object store, or in what a command writes."""
