"""What finished runs show together: tables with mean, spread and number of seeds, and plots. Reads files; trains nothing."""
