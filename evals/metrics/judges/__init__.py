"""Judges: image metrics that score a generated image by its prompt, without a reference."""
