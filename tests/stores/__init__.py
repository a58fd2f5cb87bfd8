"""Object stores as they are: a real client, and a real server that is slow, fails and stalls; skipped without `make stores`."""
