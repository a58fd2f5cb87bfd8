"""Before runs start: checks, sweeps, submission."""
