"""The embedded data sets: coloured shapes with captions, drawn and written as shards on first use."""
