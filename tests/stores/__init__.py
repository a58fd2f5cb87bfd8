"""Object stores as they are: a real client and a real server, which may be slow, fail and stall; skipped without `make stores`."""
