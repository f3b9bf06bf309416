"""Reconstructions that another system made."""
