"""Where a checkpoint comes from, and what ties that to the file that was meant.

A file of a hub repository at a pinned revision, a file at a URL, a local path (which includes files inside an installed
package), a file of an installed distribution that is never imported, several files that hold the same network, many
files that count as one, and none at all, for what was never published.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class HubWeights:
    """A file of a hub repository.

    revision: the commit that is used; None where no commit could be pinned yet (then the default branch).
    sha256: of the file, 64 hex digits; None where it is not known yet (then what was loaded is recorded, not checked).
    otherwise: what a user without network can name instead; for one file of a folder, the folder.
    terms: the licence that the hub wants accepted before it gives the file; "" where the repository is open.
    """

    repo: str
    filename: str
    revision: str | None = None
    sha256: str | None = None
    otherwise: str = "name a local file by options.NAME.weights=PATH"
    terms: str = ""

    @property
    def repository(self) -> str:
        """The repository with its revision, for people."""
        return f"{self.repo}{self._at}"

    @property
    def _at(self) -> str:
        return f"@{self.revision[:12]}" if self.revision else " (revision not pinned)"

    def __str__(self) -> str:
        return f"{self.repo}/{self.filename}{self._at}"


@dataclass(frozen=True)
class UrlWeights:
    """A file at a URL, kept in torch's hub cache. sha256: 64 hex digits, or a prefix where only that is published."""

    url: str
    sha256: str | None = None

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class LocalWeights:
    """A file on disk; `package` makes the path relative to an installed package. sha256 as in HubWeights.

    otherwise: what to do where there is none.
    """

    path: str
    package: str | None = None
    sha256: str | None = None
    otherwise: str = "name an existing checkpoint file"

    def __str__(self) -> str:
        return f"{self.package}:{self.path}" if self.package else self.path


@dataclass(frozen=True)
class LocalFiles:
    """Many files on disk that count as one, such as recorded images; their identity is that of names and contents.

    folder: what their names are relative to; files: their paths, () where none is named. what: they, for people.
    otherwise: what to do where any is missing.
    """

    what: str
    folder: str
    files: tuple[str, ...]
    otherwise: str
    sha256: None = None

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True)
class UnpublishedWeights:
    """A checkpoint that nobody has published. what: which; instead: how to get one, a sentence's end."""

    what: str
    instead: str
    sha256: None = None

    def __str__(self) -> str:
        return f"{self.what} (not published)"


@dataclass(frozen=True)
class DistributionWeights:
    """A file of an installed distribution, found in the distribution's metadata; nothing of it is imported.

    distribution: its name on the index. path: relative to where it is installed. sha256: 64 hex digits.
    requirement: what pip is told to install where there is none, options included.
    """

    distribution: str
    path: str
    sha256: str
    requirement: str

    def __str__(self) -> str:
        return f"{self.distribution}:{self.path}"


@dataclass(frozen=True)
class NetworkFile:
    """One publication of a network. read: its verified file to tensors, under names and in a layout that all of the
    network's publications share; raises WeightsError for a file of another form. A module's function, as it is hashed.
    """

    source: UrlWeights | LocalWeights | DistributionWeights
    read: Callable[[Path], dict[str, Tensor]]


@dataclass(frozen=True)
class NetworkWeights:
    """A network that was published in several files: the first of them that is here is used, else the first that can
    be downloaded. Its identity is that of its tensors, not of a file (`identity_of`).

    what: the network, for people.
    """

    what: str
    files: tuple[NetworkFile, ...]

    def __str__(self) -> str:
        return f"{self.what}: " + " or ".join(str(file.source) for file in self.files)


FileSource = HubWeights | UrlWeights | LocalWeights | DistributionWeights | UnpublishedWeights
WeightsSource = FileSource | NetworkWeights | LocalFiles


def told_as(source: WeightsSource, name: str, option: str) -> WeightsSource:
    """`source` whose message names `option` ("options.decoder_weights") where it names the plugin's own option `name`
    ("weights"): of a recipe that builds the plugin and takes a local copy by an option of its own."""
    own = re.compile(rf"options\.[\w-]+\.{name}(?==)")
    if isinstance(source, UnpublishedWeights):
        return replace(source, instead=own.sub(option, source.instead))
    if isinstance(source, HubWeights | LocalFiles | LocalWeights):
        return replace(source, otherwise=own.sub(option, source.otherwise))
    return source


def is_pinned(source: WeightsSource) -> bool:
    """Whether every file that may be used has a sha256 (or a prefix of one) to be compared with."""
    if isinstance(source, NetworkWeights):
        return all(file.source.sha256 for file in source.files)
    return source.sha256 is not None


def pin_of(source: WeightsSource) -> str:
    """What ties a source to the file that was meant, for people: "sha256", "N digits of sha256", "revision",
    "your file" or "your files", or "nothing"; of a NetworkWeights, that of each of its files."""
    if isinstance(source, NetworkWeights):
        return ", ".join(dict.fromkeys(pin_of(file.source) for file in source.files))
    if source.sha256 is not None:
        return "sha256" if len(source.sha256) == 64 else f"{len(source.sha256)} digits of sha256"
    if isinstance(source, HubWeights) and source.revision is not None:
        return "revision"
    if isinstance(source, LocalFiles):
        return "your files"
    return "your file" if isinstance(source, LocalWeights) else "nothing"
