"""Diffusion models through diffusers' stock pipelines."""
