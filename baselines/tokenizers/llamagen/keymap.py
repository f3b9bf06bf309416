"""LlamaGen's published names, which LacTok's checkpoint shares: lactok/models/vq_keymap.py holds the map."""

from lactok.models.vq_keymap import (
    from_official,
    load_official,
    meta_model,
    official_name,
    official_shape,
    to_official,
)

__all__ = ["from_official", "load_official", "meta_model", "official_name", "official_shape", "to_official"]
