"""Images that the build has already: of equal pixels, of the same picture, with a caption that others have.

Ray groups the kept items of all units by what they share; within a group the item with the lowest index stays. What is
grouped are a few hundred bytes an item, never images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lactok.data.construct import units
from lactok.data.construct.prints import BITS, NEAR, bands, distance, same_picture
from lactok.data.construct.spec import Spec

CONTENT, PERCEPTUAL, CAPTION = "duplicate: content", "duplicate: perceptual hash", "duplicate: caption"
RULES = {"c": CONTENT, "p": PERCEPTUAL, "t": CAPTION}
"""By the letter that a shared key begins with."""
PARTITIONS = 4
"""Of a shuffle, at least."""
_AT_ONCE = 1024
"""Hashes of a group that are compared with the others at once."""


def normalised_caption(text: str) -> str:
    """What captions are compared by: letters and digits alone, in lower case."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def find(spec: Spec, out: Path, total: int, kept: int) -> dict[int, tuple[str, int]]:
    """Items that are dropped: index to (reason, the index of the item that stays). Needs a connection to Ray.

    total: units, all done; kept: items that are kept so far. One shuffle groups the items by all that they may share.
    The rules apply in the order content, perceptual hash, caption; an item that an earlier rule drops takes no part in
    a later one, and an item that is the same picture as a dropped one alone stays.
    """
    import ray.data

    if not kept:
        return {}
    parts = max(PARTITIONS, kept // 20_000)
    numbers = ray.data.range(total, override_num_blocks=max(1, min(total, 4 * parts)))
    known = {"out": str(out), "rules": list(spec.duplicates), "copies": spec.copies, "buckets": parts}
    shared = numbers.map_batches(_shared, batch_size=32, fn_kwargs=known)
    groups = shared.groupby("bucket", num_partitions=parts).map_groups(_alike, fn_kwargs={"copies": spec.copies})
    checked = groups.map_batches(_confirmed, batch_size=1024, fn_kwargs={"out": str(out), "unit": spec.unit})
    edges: dict[str, set[tuple[int, int]]] = {rule: set() for rule in (CONTENT, PERCEPTUAL, CAPTION)}
    for row in checked.iter_rows():
        edges[RULES[row["rule"]]].add((int(row["later"]), int(row["first"])))
    return _resolved(edges, spec.copies)


def _resolved(edges: Mapping[str, set[tuple[int, int]]], copies: int) -> dict[int, tuple[str, int]]:
    """What is dropped. edges: by reason, (later, earlier) of equal or like items; of a caption, (item, first item) of
    every item of a caption that more than `copies` items have."""
    dropped: dict[int, tuple[str, int]] = {}
    for rule in (CONTENT, PERCEPTUAL):
        for later, first in sorted(edges[rule]):
            if later not in dropped and first not in dropped:
                dropped[later] = (rule, first)
    stays: dict[int, list[int]] = {}
    for index, first in sorted(edges[CAPTION]):
        if index not in dropped:
            holders = stays.setdefault(first, [])
            if len(holders) >= copies:
                dropped[index] = (CAPTION, holders[0])
            else:
                holders.append(index)
    return dropped


def _shared(batch: Mapping[str, np.ndarray], out: str, rules: list[str], copies: int, buckets: int) -> dict[str, Any]:
    """Numbers of units to a row for everything that a kept item of them may share with another one.

    key: the rule's letter and what is compared; signature: of a part of a hash, else empty; bucket: equal for equal
    keys, so that a group that Ray makes holds many of them.
    """
    keys, indices, signatures = [], [], []
    columns = ["index", "reason", "pixels_sha256", "caption", "signature"]
    for table in units.rows(Path(out), [int(n) for n in batch["id"]], columns):
        for row in table.filter(pc.equal(table["reason"], "")).to_pylist():
            mine = [f"c{row['pixels_sha256'][:32]}"] if "content" in rules else []
            if "caption" in rules and copies:
                mine.append(f"t{sha256(normalised_caption(row['caption']).encode()).hexdigest()[:32]}")
            plain = len(mine)
            if "perceptual" in rules:
                signature = np.frombuffer(row["signature"], np.uint8)
                mine += [f"p{value:x}" for value in bands(signature[None])[0].tolist()]
            keys += mine
            indices += [row["index"]] * len(mine)
            signatures += [b""] * plain + [row["signature"]] * (len(mine) - plain)
    return {
        "bucket": np.array([crc32(key.encode()) % buckets for key in keys], np.int64),
        "key": np.array(keys, object),
        "index": np.array(indices, np.int64),
        "signature": np.array(signatures, object),
    }


def _alike(bucket: Mapping[str, np.ndarray], copies: int) -> dict[str, np.ndarray]:
    """Pairs (later, first) of equal keys, and the letters of their rules; of hashes, those that are near."""
    keys = np.array([key.encode() for key in bucket["key"]], "S33")
    index = np.asarray(bucket["index"])
    order = np.lexsort((index, keys))
    _, starts, sizes = np.unique(keys[order], return_index=True, return_counts=True)
    found: dict[str, list[np.ndarray]] = {"rule": [], "later": [], "first": []}
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        group = order[start : start + size]
        rule = str(bucket["key"][group[0]])[0]
        if rule == "p":
            later, first = _near(index[group], [bucket["signature"][place] for place in group])
        else:
            later = index[group[1:]] if rule == "c" else index[group] if size > copies else index[:0]
            first = np.full(len(later), index[group[0]], np.int64)
        found["later"].append(later)
        found["first"].append(first)
        found["rule"].append(np.array([rule] * len(later), object))
    none = {"rule": np.zeros(0, object), "later": np.zeros(0, np.int64), "first": np.zeros(0, np.int64)}
    return {name: np.concatenate([none[name], *parts]) for name, parts in found.items()}


def _near(index: np.ndarray, hashes: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(later, first) of items, in order, whose hashes are near."""
    signatures = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(index), BITS // 8)
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
    return np.concatenate(later), np.concatenate(first)


def _confirmed(batch: Mapping[str, np.ndarray], out: str, unit: int) -> dict[str, np.ndarray]:
    """The pairs of hashes whose thumbnails show one picture, and all other pairs."""
    columns = (batch["rule"].tolist(), batch["later"].tolist(), batch["first"].tolist())
    pairs = sorted(set(zip(*columns, strict=True)))
    held: dict[int, list[bytes]] = {}

    def thumbnail(index: int) -> bytes:
        number = index // unit
        if number not in held:
            if len(held) > 64:
                held.clear()
            column = pq.read_table(units.path_of(Path(out), number), columns=["thumbnail"])["thumbnail"]
            held[number] = column.to_pylist()
        return held[number][index % unit]

    same = [(rule, x, y) for rule, x, y in pairs if rule != "p" or same_picture(thumbnail(y), thumbnail(x))]
    return {
        "rule": np.array([rule for rule, _, _ in same], object),
        "later": np.array([x for _, x, _ in same], np.int64),
        "first": np.array([y for _, _, y in same], np.int64),
    }
