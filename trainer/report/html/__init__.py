"""report.html: runs in one file that opens from disk, with curves, heat maps, tables and configuration."""
