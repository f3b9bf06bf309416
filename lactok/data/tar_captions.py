"""The captions of tars: KEY.txt, else the metadata's "caption" or "text"; of a build's shards, the Parquet index's."""

from __future__ import annotations

import json
from dataclasses import dataclass

from lactok.data.captioned import CaptionedImage, CaptionedImages, why_no_caption
from lactok.data.folder import DataError
from lactok.data.sources import TarFiles
from lactok.data.tar_index import Place
from lactok.images.decode import ImageError

METADATA_KEYS = ("caption", "text")
"""Where KEY.json has a caption: as img2dataset writes it, and as the hub's sets do."""
MAX_TEXT = 2**20
"""Bytes of a caption's or metadata's member that are read."""


@dataclass(frozen=True)
class TarCaptioned(CaptionedImage):
    """An image of a tar. problem: why its caption can't be used, "" where it can."""

    files: TarFiles
    number: int

    def read(self) -> bytes:
        return self.files.read(self.number)


class TarCaptions(CaptionedImages):
    """The samples of tars, in their order; each caption is read when its sample is."""

    def __init__(self, files: TarFiles) -> None:
        self.files = files
        self._shard: tuple[int, list[str | None]] = (-1, [])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> CaptionedImage:
        place = self.files.index[i]
        try:
            caption = self._caption(i, place)
            problem = why_no_caption(caption)
        except (ImageError, ValueError) as error:
            caption, problem = "", error.reason if isinstance(error, ImageError) else str(error)
        return TarCaptioned(place.name, caption if isinstance(caption, str) else "", problem, self.files, i)

    @property
    def identity(self) -> str:
        return self.files.fingerprint

    def _caption(self, i: int, place: Place) -> object:
        """Raises ValueError, ImageError."""
        if self.files.root.built:
            return self._of_shard(*self.files.index.place(i))
        for member, of_text in ((place.text, True), (place.json, False)):
            if member is None:
                continue
            kind = "text" if of_text else "metadata"
            if member.size > MAX_TEXT:
                raise ValueError(f"its {kind} has {member.size:,} bytes; at most {MAX_TEXT:,} are read")
            try:
                text = self.files.member(place.tar, member).decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise ValueError(f"its {kind} is not UTF-8") from error
            return text.strip() if of_text else _of_metadata(text)
        raise ValueError("no KEY.txt and no KEY.json beside it")

    def _of_shard(self, tar: int, row: int) -> str | None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._shard[0] != tar:
            path = self.files.root.built[tar].index
            try:
                self._shard = tar, pq.read_table(path, columns=["caption"]).column("caption").to_pylist()
            except (OSError, KeyError, ValueError, pa.ArrowException) as error:
                raise DataError(f"{path} can't be read ({str(error).splitlines()[0]}): get it again") from error
        return self._shard[1][row]


def _of_metadata(text: str) -> object:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("its metadata is no JSON") from error
    found = [fields[key] for key in METADATA_KEYS if key in fields] if isinstance(fields, dict) else []
    if not found:
        raise ValueError(f"its metadata has no {' or '.join(METADATA_KEYS)}")
    return found[0]
