"""The embedded data set: coloured shapes with captions, drawn and written as shards on first use."""
