"""The judges' published packages, each run by the Python of an environment of its own, as a cross-check of the ports."""
