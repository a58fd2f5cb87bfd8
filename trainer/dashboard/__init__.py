"""The workspace of a project in Weights & Biases: its sections and panels, and the command that makes it."""
