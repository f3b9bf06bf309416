"""Calibration rows of generation on scenes: the best, what a tokenizer lets through, and the floor."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lactok.data.scenes import Style, scene_of
from lactok.generators.captioned_gpt import own_seed
from lactok.generators.from_tokens import DECODING
from lactok.interface import Generator, GeneratorInfo, Item, ItemsRefused, NoOptions, Tokenizer
from lactok.weights import WeightsSource

SIDE = 128
"""Pixels of a side."""
STYLE = Style.PLAIN
"""Of the scenes; generators were trained on the style `loose`, which has the same places and backgrounds."""


class Rendered(Generator):
    """The renderer of scenes draws what the prompt's metadata say: every task at its best."""

    scale = "mini"
    calibration = -4
    expected_side = SIDE
    code_licence = "Apache-2.0"
    weights_licence = "none needed"

    @property
    def info(self) -> GeneratorInfo:
        return GeneratorInfo("calibration", output_size=SIDE)

    def generate(self, items: Sequence[Item], seed_indices: Sequence[int], seeds: Sequence[int]) -> Sequence[Tensor]:
        """float32 (3, SIDE, SIDE) each. Raises ItemsRefused for prompts without metadata of a scene."""
        images, refused = [], {}
        for place, (item, seed) in enumerate(zip(items, seeds, strict=True)):
            try:
                made = scene_of(self._metadata(item, seed), f"rendered|{seed}", SIDE, STYLE)
                images.append(torch.from_numpy(made.image).permute(2, 0, 1).float() / 255)
            except ValueError as error:
                refused[place] = f"it has no metadata of a scene ({str(error)[:120]})"
        if refused:
            raise ItemsRefused(refused)
        return [image.to(self.device) for image in images]

    def _metadata(self, item: Item, seed: int) -> Any:
        return item.tags


class ShuffledPrompts(Rendered):
    """The renderer draws another prompt of the same task, of other classes: the floor of what ignores its prompt."""

    calibration = 4
    version = 2  # 1 drew the prompt's own class at times

    def _metadata(self, item: Item, seed: int) -> Any:
        from lactok.data.scenes.combinations import Split
        from lactok.data.scenes.content import content_of, draw_content, metadata
        from lactok.data.scenes.draws import Draws
        from lactok.data.scenes.vocabulary import TASKS

        tags = dict(item.tags)
        task = next((place for place, name in enumerate(TASKS) if name == tags.get("tag")), None)
        if task is None:
            raise ValueError(f"tag {tags.get('tag')!r}")
        asked = {thing.class_name for thing in content_of(tags, Draws(f"shuffled|{seed}")).things}
        for turn in count(seed % 1009):
            content = draw_content(seed % 2**31, task + len(TASKS) * turn, Split.ALL)
            if not asked & {thing.class_name for thing in content.things}:
                return metadata(content, "")


class RenderedThrough(Rendered):
    """The renderer's images through a tokenizer and back: the most that a generator of its tokens can reach."""

    TOKENIZER: ClassVar[str]
    Options: ClassVar[type] = NoOptions

    def __init__(self, options: Any, device: torch.device) -> None:
        super().__init__(options, device)
        plugin = self._plugin()
        self.tokenizer = plugin(plugin.Options(), device)

    @classmethod
    def _plugin(cls) -> type[Tokenizer]:
        from lactok import registry

        return registry.load("tokenizers", cls.TOKENIZER)

    @classmethod
    def weights(cls, options: Any) -> tuple[WeightsSource, ...]:
        plugin = cls._plugin()
        return plugin.weights(plugin.Options())

    @torch.no_grad()
    def generate(self, items: Sequence[Item], seed_indices: Sequence[int], seeds: Sequence[int]) -> Sequence[Tensor]:
        images = torch.stack(list(super().generate(items, seed_indices, seeds)))
        size = self.tokenizer.info.input_size or SIDE
        seen = interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        decoded = self.tokenizer.decode(self.tokenizer.encode(seen), [own_seed(seed, DECODING) for seed in seeds])
        return list(decoded.float().clamp(0, 1))


class RenderedThroughLlamaGen(RenderedThrough):
    """Through llamagen-mini."""

    calibration = -3
    TOKENIZER = "llamagen-mini"


class RenderedThroughLacTokH(RenderedThrough):
    """Through lactok-h-mini."""

    calibration = -2
    TOKENIZER = "lactok-h-mini"


class RenderedThroughLacTokT(RenderedThrough):
    """Through lactok-t-mini."""

    calibration = -1
    TOKENIZER = "lactok-t-mini"
