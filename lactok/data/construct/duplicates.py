"""Images that the build has already: of equal pixels, of the same picture, with a caption that others have.

Ray groups the kept items of all units by what they share; within a group the item with the lowest index stays. What is
grouped are a few hundred bytes an item, never images.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from lactok.data.construct import units
from lactok.data.construct.prints import BANDS, BITS, NEAR, bands, distance, same_picture
from lactok.data.construct.spec import Spec

CONTENT, PERCEPTUAL, CAPTION = "duplicate: content", "duplicate: perceptual hash", "duplicate: caption"
PARTITIONS = 8
"""Of a shuffle, at least."""
_AT_ONCE = 2048
"""Hashes of a group that are compared with the others at once."""


def normalised_caption(text: str) -> str:
    """What captions are compared by: letters and digits alone, in lower case."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def find(spec: Spec, out: Path, total: int, kept: int) -> dict[int, tuple[str, int]]:
    """Items that are dropped: index to (reason, the index of the item that stays). Needs a connection to Ray.

    total: units, all done; kept: items that are kept so far. The rules apply in the order content, perceptual hash,
    caption; an item that an earlier rule drops takes no part in a later one.
    """
    import ray.data

    dropped: dict[int, tuple[str, int]] = {}
    parts = max(PARTITIONS, kept // 200_000)
    numbers = ray.data.range(total, override_num_blocks=max(1, min(total, 4 * parts)))
    rows = numbers.map_batches(_read, batch_size=32, fn_kwargs={"out": str(out)}, num_cpus=0.5).materialize()
    if rows.count() == 0:
        return dropped
    if "content" in spec.duplicates:
        groups = rows.groupby("pixels", num_partitions=parts)
        _first_stays(groups.map_groups(_copies, fn_kwargs={"keep": 1}, num_cpus=0.5), CONTENT, dropped)
    if "perceptual" in spec.duplicates:
        banded = rows.map_batches(_banded, batch_size=4096, num_cpus=0.5)
        pairs = banded.groupby("band", num_partitions=parts).map_groups(_near, num_cpus=0.5)
        same = pairs.map_batches(_confirmed, batch_size=1024, fn_kwargs={"out": str(out), "unit": spec.unit}, num_cpus=0.5)
        edges = sorted({(int(row["later"]), int(row["first"])) for row in same.iter_rows()})
        _without_chains(edges, dropped)
    if "caption" in spec.duplicates and spec.copies:
        gone = np.array(sorted(dropped), np.int64)
        left = rows.map_batches(_without, batch_size=4096, fn_kwargs={"gone": gone}, num_cpus=0.5)
        if left.count():
            groups = left.groupby("caption", num_partitions=parts)
            more = groups.map_groups(_copies, fn_kwargs={"keep": spec.copies}, num_cpus=0.5)
            _first_stays(more, CAPTION, dropped)
    return dropped


def _without(batch: Mapping[str, np.ndarray], gone: np.ndarray) -> dict[str, np.ndarray]:
    """The rows of items that are not dropped. gone: int64, sorted."""
    stays = ~np.isin(batch["index"], gone)
    return {name: np.asarray(batch[name])[stays] for name in ("index", "caption")}


def _first_stays(found: Any, reason: str, dropped: dict[int, tuple[str, int]]) -> None:
    for row in found.iter_rows():
        dropped.setdefault(int(row["later"]), (reason, int(row["first"])))


def _without_chains(edges: list[tuple[int, int]], dropped: dict[int, tuple[str, int]]) -> None:
    """Drop each item that is the same picture as an earlier one which stays. edges: (later, earlier), sorted."""
    for later, first in edges:
        if later not in dropped and first not in dropped:
            dropped[later] = (PERCEPTUAL, first)


def _read(batch: Mapping[str, np.ndarray], out: str) -> dict[str, Any]:
    """Numbers of units to what their kept items are compared by."""
    made: dict[str, list[Any]] = {"index": [], "pixels": [], "caption": [], "signature": []}
    columns = ["index", "reason", "pixels_sha256", "caption", "signature"]
    for table in units.rows(Path(out), [int(n) for n in batch["id"]], columns):
        for row in table.to_pylist():
            if not row["reason"]:
                made["index"].append(row["index"])
                made["pixels"].append(row["pixels_sha256"])
                made["caption"].append(normalised_caption(row["caption"]))
                made["signature"].append(row["signature"])
    return {"index": np.array(made["index"], np.int64), **{k: made[k] for k in ("pixels", "caption", "signature")}}


def _copies(group: Mapping[str, np.ndarray], keep: int) -> dict[str, np.ndarray]:
    """All of a group but the `keep` lowest."""
    order = np.sort(group["index"])
    return {"later": order[keep:], "first": np.full(max(len(order) - keep, 0), order[0])}


def _banded(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A row for each part of each hash."""
    signatures = np.frombuffer(b"".join(batch["signature"]), np.uint8).reshape(-1, BITS // 8)
    values = bands(signatures)
    return {
        "band": values.reshape(-1).view(np.int64),
        "index": np.repeat(np.asarray(batch["index"], np.int64), BANDS),
        "signature": [bytes(s) for s in np.repeat(signatures, BANDS, axis=0)],
    }


def _near(group: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Pairs of a group whose hashes are near, (later, first)."""
    order = np.argsort(group["index"], kind="stable")
    index = np.asarray(group["index"])[order]
    joined = b"".join(group["signature"][place] for place in order)
    signatures = np.frombuffer(joined, np.uint8).reshape(len(index), BITS // 8)
    first, later = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, len(index), _AT_ONCE):
        mine = signatures[start : start + _AT_ONCE]
        for other in range(0, start + 1, _AT_ONCE):
            theirs = signatures[other : other + _AT_ONCE]
            a, b = np.nonzero(distance(mine[:, None], theirs[None]) <= NEAR)
            a, b = a + start, b + other
            before = b < a
            later.append(index[a[before]])
            first.append(index[b[before]])
    return {"later": np.concatenate(later), "first": np.concatenate(first)}


def _confirmed(batch: Mapping[str, np.ndarray], out: str, unit: int) -> dict[str, np.ndarray]:
    """The pairs whose thumbnails show one picture."""
    pairs = sorted(set(zip(batch["later"].tolist(), batch["first"].tolist(), strict=True)))
    held: dict[int, list[bytes]] = {}

    def thumbnail(index: int) -> bytes:
        number = index // unit
        if number not in held:
            if len(held) > 64:
                held.clear()
            column = pq.read_table(units.path_of(Path(out), number), columns=["thumbnail"])["thumbnail"]
            held[number] = column.to_pylist()
        return held[number][index % unit]

    same = [pair for pair in pairs if same_picture(thumbnail(pair[1]), thumbnail(pair[0]))]
    return {key: np.array([pair[i] for pair in same], np.int64) for i, key in enumerate(("later", "first"))}
