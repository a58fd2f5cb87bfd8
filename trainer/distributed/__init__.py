"""This process among its peers: start, collectives, signals, silence, end."""
