"""Local copies of hub files that a user names: a file, or the folder that holds it."""

from __future__ import annotations

from pathlib import Path

from lactok.weights import HubWeights, LocalWeights, WeightsSource, override, saved_files


def local_checkpoint(source: HubWeights, stem: str, path: str | None) -> list[WeightsSource]:
    """The hub's file; or the file `path`; or, of a folder, the files in which `save_pretrained` left the tensors under
    that stem (one, or an index and its shards). The first is for `load_state_dict`."""
    if path is not None and (folder := Path(path).expanduser()).is_dir():
        return [LocalWeights(str(file)) for file in saved_files(folder, stem)]
    return [override(source, path)]
