"""Images from captions by a registered generator: FLUX.1-dev in the paper's recipe.

The noise of an image comes from its caption's sha256 alone: the same caption gives the same image in every build.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lactok.data.construct.inspection import encoded
from lactok.data.construct.items import WorkItem
from lactok.data.construct.spec import Spec, SpecError
from lactok.data.construct.stages import StageWork


def seed_of(caption: str) -> int:
    """A 63-bit seed from the sha256 of a caption."""
    from lactok.items import item_seed, prompt_hash

    return item_seed(0, 0, prompt_hash(caption))


def options_of(spec: Spec) -> tuple[Any, Any]:
    """The generator's class and its options. Raises RegistryError, SpecError for an option that it does not have."""
    from pydantic import TypeAdapter, ValidationError

    from lactok import registry

    cls = registry.load("generators", spec.generator)
    fields = {field.name: field for field in dataclasses.fields(cls.Options)}
    if strange := sorted(set(spec.options) - set(fields)):
        raise SpecError(f"options.{strange[0]}: {spec.generator} has no such option; known: {', '.join(fields)}")
    given: dict[str, Any] = {"size": spec.size, **spec.options} if "size" in fields else dict(spec.options)
    try:
        return cls, TypeAdapter(cls.Options).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise SpecError(f"options.{first['loc'][0]}={first['input']}: {first['msg']}") from None


def model(spec: Spec) -> dict[str, Any]:
    """What build.json says of the generator: options, sources and revisions of its weights."""
    cls, options = options_of(spec)
    sources = [str(source) for source in cls.weights(options)]
    settings = {key: value for key, value in dataclasses.asdict(options).items() if value is not None}
    revision = getattr(cls, "REVISION", "") if getattr(options, "weights", None) is None else "a local folder"
    return {"name": spec.generator, "revision": revision, "options": settings, "files": len(sources)}


class GeneratorSynthesiser(StageWork):
    """Fills in the image of items that have a caption and none; those with an image pass."""

    name = "synthesise"

    def __init__(self, spec: Spec) -> None:
        import torch

        self.batch, self.spec = spec.stages.synthesise.batch, spec
        self.generator: Any = None
        self.at = torch.device("cuda" if spec.stage("synthesise").gpus else "cpu")
        if spec.captions:
            cls, options = options_of(spec)
            if "together" in {field.name for field in dataclasses.fields(options)} and "together" not in spec.options:
                options = dataclasses.replace(options, together=self.batch)
            self.generator = cls(options, self.at)

    def device(self) -> str:
        import torch

        return torch.cuda.get_device_name() if self.at.type == "cuda" else "cpu"

    def work(self, items: Sequence[WorkItem]) -> None:
        from lactok.images.arrays import pixels
        from lactok.interface import Item, ItemsRefused
        from lactok.items import prompt_hash

        wanted = [item for item in items if not item.image]
        if not wanted:
            return
        asked = [Item(i.key, i.key, prompt_hash(i.raw_caption), i.raw_caption) for i in wanted]
        seeds = [seed_of(item.raw_caption) for item in wanted]
        try:
            made = self.generator.generate(asked, [0] * len(asked), seeds)
        except ItemsRefused as error:
            for place, why in error.reasons.items():
                wanted[place].drop("prompt refused", why)
            self.work([item for item in wanted if not item.reason])
            return
        for item, seed, image in zip(wanted, seeds, made, strict=True):
            item.seed = seed
            values = pixels(image.clamp(0, 1))
            item.image, item.format = encoded(values, self.spec.keep_format, self.spec.quality), self.spec.keep_format
