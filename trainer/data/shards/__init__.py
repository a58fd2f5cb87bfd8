"""From a name to samples: shard patterns, tar files, captions, images."""
