"""This process among its fellows: start, collectives, signals, silence, end."""
