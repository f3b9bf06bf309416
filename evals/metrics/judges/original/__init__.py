"""The judges' published packages, each run by the Python of its own environment, as a cross-check of the ports."""
