"""Scenes of coloured shapes with captions and exact labels, from a seed: GenEval's six tasks in small."""

from lactok.data.scenes.combinations import Split
from lactok.data.scenes.folder import write_folder
from lactok.data.scenes.render import Scene, SceneObject, scene, scene_of, scenes
from lactok.data.scenes.vocabulary import Style

__all__ = ["Scene", "SceneObject", "Split", "Style", "scene", "scene_of", "scenes", "write_folder"]
