"""One run, opened and trained."""
