"""Items that are no independent draws: copies share a cluster, images that look alike are told of.

An interval resamples clusters. Copies of an image that stood alone would make it narrower, and say nothing new.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from lactok.items import Item

# Bits of 64 in which the hashes of two images that look alike differ at most. Another compression of an image changes 0
# to 2; two photographs of nothing in common differ in 32 on average, with a standard deviation of 4.
NEAR = 3
# More hashes than this are compared for equality alone: where many begin alike, most pairs are looked at.
MOST_COMPARED = 100_000
# Pairs that look alike that a note names.
NAMED = 3


def share_clusters(items: Sequence[Item]) -> tuple[list[Item], list[str]]:
    """The items, those of one content in one cluster with all that were in theirs, and a note where there are such.

    A joined cluster has the name of its first item's.
    """
    parent: dict[str, str] = {}

    def root(cluster: str) -> str:
        while parent.setdefault(cluster, cluster) != cluster:
            parent[cluster] = cluster = parent[parent[cluster]]
        return cluster

    first_of: dict[str, str] = {}
    for item in items:
        kept, other = root(first_of.setdefault(item.content_hash, item.cluster)), root(item.cluster)
        if kept != other:
            parent[other] = kept
    copies = len(items) - len(first_of)
    if not copies:
        return list(items), []
    # the root may be a later item's cluster, so each is named anew in the order of the items
    names: dict[str, str] = {}
    joined = [dataclasses.replace(i, cluster=names.setdefault(root(i.cluster), i.cluster)) for i in items]
    return joined, [
        f"{copies:,} of {len(items):,} items are copies of others (equal content): copies are one cluster, and there "
        f"are {len(names):,} clusters"
    ]


def perceptual_hash(pixels: np.ndarray) -> str:
    """The 64-bit dHash of an image, hex: of 9 x 8 grey means, whether each is brighter than its right neighbour.

    pixels: uint8 (H, W, 3) RGB. Source: N. Krawetz, "Kind of Like That", hackerfactor.com, 2013.
    """
    small = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX))
    return np.packbits(small[:, :-1] > small[:, 1:]).tobytes().hex()


def look_alike(hashes: Mapping[str, str], items: Sequence[Item]) -> list[str]:
    """A note on images in different clusters that look nearly the same; [] where there are none.

    hashes: by item id, of `perceptual_hash`. Images without any edge (hash 0) are not compared.
    """
    kept = [item for item in items if int(hashes.get(item.id) or "0", 16)]
    values = np.array([int(hashes[item.id], 16) for item in kept], dtype=np.uint64)
    clusters = np.unique([item.cluster for item in kept], return_inverse=True)[1] if kept else np.zeros(0, np.int64)
    pairs = _equal(values) if len(values) > MOST_COMPARED else _near(values)
    pairs = pairs[clusters[pairs[:, 0]] != clusters[pairs[:, 1]]]
    if not len(pairs):
        return []
    named = ", ".join(f"{kept[a].id} and {kept[b].id}" for a, b in pairs[:NAMED].tolist())
    bound = "equal 64-bit dHash" if len(values) > MOST_COMPARED else f"64-bit dHash, at most {NEAR} bits apart"
    return [
        f"{len(np.unique(pairs)):,} image(s) look nearly the same as another one that is no copy ({bound}), and stand "
        f"in different clusters: {named}{', ...' if len(pairs) > NAMED else ''}. dataset.cluster can join them"
    ]


def _near(values: np.ndarray) -> np.ndarray:
    """(P, 2) indices of all pairs of hashes that are near, in order: of four parts of 16 bits, one is equal in both."""
    found = [np.zeros((0, 2), dtype=np.int64)]
    for shift in range(0, 64, 64 // (NEAR + 1)):
        part = (values >> np.uint64(shift)) & np.uint64(0xFFFF)
        order = np.argsort(part, kind="stable")
        part, ordered = part[order], values[order]
        start, ahead = np.arange(len(values)), 1
        while len(start := start[start < len(values) - ahead]):
            start = start[part[start] == part[start + ahead]]
            near = start[np.bitwise_count(ordered[start] ^ ordered[start + ahead]) <= NEAR]
            found.append(np.stack([order[near], order[near + ahead]], axis=1))
            ahead += 1
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _equal(values: np.ndarray) -> np.ndarray:
    """(P, 2) indices: each hash that occurred before, with its first place."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    pairs = np.stack([first[inverse], np.arange(len(values))], axis=1)
    return pairs[pairs[:, 0] != pairs[:, 1]]
