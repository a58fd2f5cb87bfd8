"""Results of several finished runs: tables with mean, spread and number of seeds, and plots. Reads files; trains nothing."""
