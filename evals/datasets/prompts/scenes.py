"""Prompts of rendered scenes that no miniature was trained on: GenEval in small, with nothing to fetch."""

from __future__ import annotations

from collections import Counter

from evals.datasets.base import DatasetNeeds, DatasetRequest, PromptDataset, spread
from lactok.data.scenes.captions import canonical
from lactok.data.scenes.combinations import Split
from lactok.data.scenes.content import draw_content, metadata
from lactok.data.scenes.vocabulary import TASKS
from lactok.items import Item, prompt_hash

PER_TASK = 12
"""As many prompts of each of the six tasks; of counts only 14 are held out."""
SEED = 2026
"""Of the stream of scenes; that of training images is another one."""


class ScenePrompts(PromptDataset):
    """Short forms of held-out scenes, each once. Single objects, of which there are 24, can't be held out."""

    name = "scene-prompts"

    def __init__(self, items: list[Item]) -> None:
        self.items = items
        self.left_out = []
        self.notes = []

    @classmethod
    def open(cls, request: DatasetRequest) -> ScenePrompts:
        """All of them, or as many as the limit says."""
        items = {item.id: item for item in scene_items()}
        return cls([items[i] for i in spread(list(items), request.limit)])

    @classmethod
    def needs(cls) -> DatasetNeeds:
        return DatasetNeeds("prompts of rendered scenes with combinations that training held out", True)


def scene_items() -> list[Item]:
    """The prompts, task by task in turns; id: the task and a number; tags: GenEval's metadata."""
    items: list[Item] = []
    taken: set[str] = set()
    counts: Counter[str] = Counter()
    index = 0
    while len(items) < PER_TASK * len(TASKS):
        task = TASKS[index % len(TASKS)]
        if counts[task] < PER_TASK:
            content = draw_content(SEED, index, Split.HELD_OUT)
            prompt = canonical(content)
            if prompt not in taken:
                taken.add(prompt)
                name = f"{task}-{counts[task]:02d}"
                tags = {key: value for key, value in metadata(content, prompt).items() if key != "prompt"}
                items.append(Item(name, name, prompt_hash(prompt), prompt, tags))
                counts[task] += 1
        index += 1
    return items
