"""Which pair comes when: the same order for any number of processes and workers, and its place after a resume."""
