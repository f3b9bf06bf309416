"""Prompts that others publish, in files that `python -m evals data get` fetches and checks: GenEval's, and COCO's
captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from evals.datasets.base import (
    DataError,
    DatasetError,
    DatasetNeeds,
    DatasetRequest,
    MissingData,
    PromptDataset,
    spread,
)
from evals.datasets.images import coco
from evals.datasets.images.download import Download
from lactok.items import Item, prompt_hash


class PublishedPrompts(PromptDataset):
    """A subclass states, beside name and expected:

    summary: one line; obtain: how to get it; downloads: the files that `data get` fetches.
    """

    expected: ClassVar[int]
    summary: ClassVar[str]
    obtain: ClassVar[str]
    downloads: ClassVar[tuple[Download, ...]]

    def __init__(self, items: list[Item], notes: list[str]) -> None:
        self.items = items
        self.left_out = []
        self.notes = notes

    @classmethod
    def read(cls, root: Path) -> list[Item]:
        """The prompts below `root`. Raises MissingData, DataError."""
        raise NotImplementedError

    @classmethod
    def missing(cls, root: Path) -> MissingData:
        """What is said where nothing is below `root`."""
        return MissingData(f"{cls.name}: no prompts in {root} (absolute: {root.absolute()}). {cls.obtain}")

    @classmethod
    def open(cls, request: DatasetRequest) -> PublishedPrompts:
        """The prompts of data/NAME, or of the root. Raises MissingData, DataError, and DatasetError for another
        number than the published one, unless a limit or dataset.expect says that a part is wanted."""
        root = Path(request.root or f"data/{cls.name}").expanduser()
        items = cls.read(root)
        wanted = request.expect or cls.expected
        if len(items) != wanted and request.limit is None:
            raise DatasetError(
                f"{cls.name} in {root}: {len(items):,} prompts, expected {wanted:,}; {cls.obtain}, or say "
                f"dataset.expect={len(items)}"
            )
        by_id = {item.id: item for item in items}
        return cls([by_id[i] for i in spread(list(by_id), request.limit)], cls.notes_of())

    @classmethod
    def notes_of(cls) -> list[str]:
        """Lines for the report."""
        return []

    @classmethod
    def needs(cls) -> DatasetNeeds:
        return DatasetNeeds(f"{cls.summary}; `python -m evals data get {cls.name}`", None)


class GenEvalPrompts(PublishedPrompts):
    """GenEval's 553 prompts in six tasks (Ghosh et al. 2023), with their metadata as tags."""

    name = "geneval"
    expected = 553
    summary = "GenEval's prompts: evaluation_metadata.jsonl"
    obtain = "`python -m evals data get geneval` fetches it (85 kB)"
    downloads = (
        Download(
            "https://raw.githubusercontent.com/djghosh13/geneval/main/prompts/evaluation_metadata.jsonl",
            "evaluation_metadata.jsonl",
            85_209,
            "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
        ),
    )

    @classmethod
    def read(cls, root: Path) -> list[Item]:
        """Ids are the prompts' numbers in the file, five digits, as GenEval names its folders."""
        path = root if root.is_file() else root / "evaluation_metadata.jsonl"
        if not path.is_file():
            raise cls.missing(root)
        items = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            try:
                fields = json.loads(line)
                prompt = fields.pop("prompt")
                item = Item(f"{number:05d}", f"{number:05d}", prompt_hash(prompt), prompt, fields)
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise DataError(f"{path}, line {number + 1}: {type(error).__name__}: {error}; get it again") from error
            items.append(item)
        return items


class CocoCaptions(PublishedPrompts):
    """A caption of each of MSCOCO 2017's 5,000 validation images: the one with the smallest id in the annotations."""

    name = "coco-captions"
    expected = 5_000
    summary = "a caption of each MSCOCO 2017 validation image: annotations_trainval2017.zip"
    obtain = "`python -m evals data get coco-captions` fetches the annotations (0.25 GB)"
    downloads = (coco.FILES[1],)

    @classmethod
    def read(cls, root: Path) -> list[Item]:
        """Ids are the images'."""
        first: dict[str, coco.Caption] = {}
        for caption in coco.captions(root):  # by image and number
            first.setdefault(caption.image, caption)
        if not first:
            raise cls.missing(root)
        return [Item(one.image, one.image, prompt_hash(one.text), one.text) for one in first.values()]

    @classmethod
    def notes_of(cls) -> list[str]:
        return ["a caption an image, of the smallest id; the paper does not say which it takes"]
