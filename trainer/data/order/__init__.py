"""The order of the pairs, the same for any number of processes and workers, and how a resume finds its place in it."""
