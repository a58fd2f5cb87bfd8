"""Before runs start: checked, multiplied, submitted."""
