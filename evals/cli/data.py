"""`python -m evals data`: get, verify and make the paper's datasets."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evals.datasets.images.paper import PaperDataset
    from evals.datasets.prompts.published import PublishedPrompts

T = TypeVar("T")

HELP = """\
usage: python -m evals data list
       python -m evals data get NAME [root=DIR]
       python -m evals data verify NAME [root=DIR] [expect=N] [workers=N] [out=DIR]
       python -m evals data make-flux prompts=FILE [out=DIR]

  list       the paper's datasets: how many images or prompts, and what to place where
  get        downloads where the publisher allows it (coco-val2017, coco-captions, geneval), resumes where it stopped,
             checks size and sha256; for the others it says what to place where
  verify     counts, decodes and fingerprints every image, in processes; names every bad file
  make-flux  makes flux-5k with FLUX.1-dev (a GPU): an image a prompt, the seed from the prompt; resumes where it
             stopped. FILE: a prompt a line, or COCO's captions_val2017.json (the first caption of each image)

NAME may be cut short where that is clear (coco). root, and make-flux's out: a folder [data/NAME], or, to verify, one
archive. expect=N: the number of images, of a part. workers=N: processes [the cores]. verify's out: the store, where
a gzipped tar is expanded [results].

Exit status: 0 all is well; 1 a bad image, a wrong number of images, or an archive that can't be trusted; 2 the
data are missing or the command can't be used; 130 stopped by Ctrl-C.
"""


@dataclass(frozen=True)
class Command:
    """One `data` command: its words after the name, and its key=value settings."""

    words: list[str]
    settings: dict[str, str]

    def number(self, key: str) -> int | None:
        """A setting that is a whole number of at least 1. Raises DatasetError."""
        from evals.datasets.base import DatasetError

        value = self.settings.get(key)
        if value is not None and not (value.isascii() and value.isdigit() and int(value) > 0):
            raise DatasetError(f"{key}={value}: expected a whole number of at least 1")
        return None if value is None else int(value)

    def dataset(self) -> type[PaperDataset]:
        """The dataset of images that is named. Raises DatasetError."""
        return self._named(paper_datasets())

    def published(self) -> type[PaperDataset] | type[PublishedPrompts]:
        """The dataset that is named, of images or of prompts. Raises DatasetError."""
        images = paper_datasets()
        begun = [name for name in images if self.words and name.startswith(self.words[0])]
        return self._named(images if len(begun) == 1 and self.words[0] not in prompt_datasets() else _published())

    def _named(self, known: Mapping[str, T]) -> T:
        from evals.datasets.base import DatasetError
        from lactok.registry import unknown

        if len(self.words) != 1:
            raise DatasetError(f"expected one name of {', '.join(known)}, got {' '.join(self.words) or 'none'}")
        begun = [name for name in known if name.startswith(self.words[0])]
        begun = [name for name in begun if name == self.words[0]] or begun
        if len(begun) != 1:
            raise DatasetError(unknown("dataset", self.words[0], list(known)))
        return known[begun[0]]

    def folder(self, key: str, name: str) -> Path:
        """The folder of the dataset `name`, data/NAME unless another is given. Raises DatasetError for an empty one."""
        return self.path(key, f"data/{name}")

    def path(self, key: str, usual: str) -> Path:
        """A folder that is named, or the usual one. Raises DatasetError for an empty name."""
        from evals.datasets.base import DatasetError

        value = self.settings.get(key, usual)
        if not value.strip():
            raise DatasetError(f"{key}= is empty (an unset variable of the shell?): name a folder; {key}=. is this one")
        return Path(value).expanduser()


def paper_datasets() -> dict[str, type[PaperDataset]]:
    """The paper's datasets, and what others have made of the same class, by name."""
    from evals.datasets.images.paper import PaperDataset
    from evals.datasets.registry import dataset_classes

    return {cls.name: cls for cls in dataset_classes() if issubclass(cls, PaperDataset)}


def prompt_datasets() -> dict[str, type[PublishedPrompts]]:
    """The published prompts, by name."""
    from evals.datasets.prompts.published import PublishedPrompts
    from evals.datasets.registry import dataset_classes

    return {cls.name: cls for cls in dataset_classes() if issubclass(cls, PublishedPrompts)}


def _published() -> dict[str, type[PaperDataset] | type[PublishedPrompts]]:
    return {**paper_datasets(), **prompt_datasets()}


def main(argv: list[str]) -> int:
    """See HELP."""
    if not argv or any(a in ("-h", "--help", "help") for a in argv):
        print(HELP, end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    from evals.datasets.base import DataError, DatasetError
    from lactok.files import WriteError

    try:
        return _dispatch(argv[0], argv[1:])
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (DatasetError, WriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; what is done is kept, and the same command resumes", file=sys.stderr)
        return 130


def _dispatch(name: str, rest: list[str]) -> int:
    from evals.datasets.base import DatasetError
    from lactok.registry import unknown

    commands = {
        "list": (_list, ()),
        "get": (_get, ("root",)),
        "verify": (_verify, ("root", "expect", "workers", "out")),
        "make-flux": (_make_flux, ("prompts", "out")),
    }
    if name not in commands:
        raise DatasetError(unknown("command", f"data {name}", [f"data {c}" for c in commands]))
    command, keys = commands[name]
    settings = dict(word.split("=", 1) for word in rest if "=" in word)
    for key in settings:
        if key not in keys:
            raise DatasetError(unknown("key", key, list(keys)) if keys else f"data {name} takes no keys, got {key}=")
    return command(Command([word for word in rest if "=" not in word], settings))


def _list(command: Command) -> int:
    for dataset in _published().values():
        print(f"{dataset.name}: {dataset.summary}\n    {dataset.obtain}")
    print("\nThen: python -m evals data verify NAME root=DIR; python -m evals.run dataset=NAME dataset.root=DIR ...")
    return 0


def _get(command: Command) -> int:
    from evals.datasets.base import MissingData
    from evals.datasets.images.download import fetch

    dataset = command.published()
    root = command.folder("root", dataset.name)
    if not dataset.downloads:
        raise MissingData(f"{dataset.name} is not downloaded by this command; place it in {root}. {dataset.obtain}")
    for download in dataset.downloads:
        print(f"{fetch(download, root)}: {download.size:,} bytes, sha256 {download.sha256}")
    verify = dataset.name in paper_datasets()
    print(f"next: python -m evals data verify {dataset.name} root={root}" if verify else "done")
    return 0


def _verify(command: Command) -> int:
    from evals.datasets.images.verify import cores, verify

    dataset = command.dataset()
    root = command.folder("root", dataset.name)
    cache_dir = command.path("out", "results") / "cache" / "index"
    seen = verify(dataset, root, cache_dir, command.number("expect"), command.number("workers") or cores())
    for bad in seen.bad:
        print(f"bad: {bad.path}: {bad.reason}")
    if seen.problem:
        print(f"not whole: {seen.problem}")
    print(f"{dataset.name} in {seen.where}: {seen.images:,} images can be read, {len(seen.bad):,} bad")
    print(f"fingerprint {seen.fingerprint}")
    return 1 if seen.bad or seen.problem else 0


def _make_flux(command: Command) -> int:
    from evals.datasets.base import DatasetError
    from evals.datasets.images import make_flux
    from lactok.progress import Meter

    if command.words or "prompts" not in command.settings:
        raise DatasetError("write `python -m evals data make-flux prompts=FILE out=DIR`")
    prompts = make_flux.read_prompts(Path(command.settings["prompts"]).expanduser())
    out = command.folder("out", "flux-5k")
    todo = make_flux.pending(prompts, out)
    if todo:
        paint = make_flux.flux_painter(make_flux.settings_for(prompts))
        with Meter(len(todo), "making images") as meter:
            for _ in make_flux.make(prompts, todo, out, paint):
                meter.advance()
    print(f"{out}: {len(todo):,} images made now, {len(prompts):,} in all")
    return 0
