"""Scenes of coloured shapes with captions and exact labels, from a seed: GenEval's six tasks in small."""

from lactok.data.scenes.combinations import Split
from lactok.data.scenes.folder import write_folder
from lactok.data.scenes.render import Scene, SceneObject, scene, scenes

__all__ = ["Scene", "SceneObject", "Split", "scene", "scenes", "write_folder"]
