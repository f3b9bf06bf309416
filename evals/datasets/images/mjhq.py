"""MJHQ-5K: 5,000 of the 30,000 images of MJHQ-30K (Li et al., Playground v2.5, 2024), 500 of each category.

The paper does not say which 5,000 it drew. Ours are fixed by a rule: in each of the ten categories, the 500 images
whose names (the file's stem, which is the key in meta_data.json) have the smallest sha256. The rule is what is
committed; the list follows from it and the published names, and every run's fingerprint stands for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from evals.datasets.base import DataError, DatasetError
from evals.datasets.images.paper import Chosen, PaperDataset, is_image

CATEGORIES = ("animals", "art", "fashion", "food", "indoor", "landscape", "logo", "people", "plants", "vehicles")
POOL = 30_000
META = "meta_data.json"
META_SHA256 = "db9cc0a0c637adbb16eda4c644e46dd23b63111f70434649d66a601e0f0eef30"  # at the revision named below


def draw(ids: Iterable[str], each: int) -> list[str]:
    """The fixed draw from ids "category/name", sorted: of each category the `each` names with the smallest sha256."""
    by_category: dict[str, list[str]] = {}
    for i in ids:
        by_category.setdefault(i.split("/", 1)[0], []).append(i)
    rank = {i: sha256(i.split("/", 1)[1].encode()).digest() for group in by_category.values() for i in group}
    return sorted(i for group in by_category.values() for i in sorted(group, key=rank.__getitem__)[:each])


def listed(path: Path) -> list[str]:
    """The ids in a meta_data.json. Raises DataError for one that can't be read as such."""
    try:
        return [f"{entry['category']}/{name}" for name, entry in json.loads(path.read_bytes()).items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no list of MJHQ-30K ({type(error).__name__}: {error}): get it again") from error


class MJHQ5K(PaperDataset):
    """The fixed draw from MJHQ-30K."""

    name = "mjhq-5k"
    expected = 5_000
    summary = "5,000 of MJHQ-30K's images, 500 of each category by a fixed rule: zip or folder of ten folders"
    obtain = (
        "Read the terms at https://huggingface.co/datasets/playgroundai/MJHQ-30K and place mjhq30k_imgs.zip and "
        "meta_data.json there: `hf download playgroundai/MJHQ-30K mjhq30k_imgs.zip meta_data.json --repo-type dataset "
        "--revision 15b0a659e066e763d0e9a6cd8f00e25f8af5e084 --local-dir DIR`"
    )
    archives = ("mjhq30k_imgs.zip",)
    folders = ("mjhq30k_imgs", ".")

    @staticmethod
    def item_id(name: str) -> str | None:
        """ "mjhq30k_imgs/animals/0a1b.jpg" to "animals/0a1b"; None for what is not in a category's folder."""
        parts = name.split("/")
        if len(parts) < 2 or parts[-2] not in CATEGORIES or not is_image(name):
            return None
        return f"{parts[-2]}/{parts[-1].rsplit('.', 1)[0]}"

    @classmethod
    def choose(cls, ids: Sequence[str], root: Path, expect: int | None) -> Chosen:
        """The draw: from the names in meta_data.json where it is, else from those of the images."""
        meta = next((path for path in (root / META, root.parent / META) if path.is_file()), None)
        pool = listed(meta) if meta else list(ids)
        wanted = expect or cls.expected
        if wanted % len(CATEGORIES):
            raise DatasetError(f"dataset.expect={wanted}: expected a multiple of 10, the same number of each category")
        drawn = draw(pool, wanted // len(CATEGORIES))
        here = set(ids)
        absent = [i for i in drawn if i not in here]
        problems = []
        if expect is None and len(pool) != POOL:
            problems.append(f"drawn from {len(pool):,} names, expected {POOL:,}: not the fixed draw")
        if expect is None and meta and (seen := sha256(meta.read_bytes()).hexdigest()) != META_SHA256:
            problems.append(f"{META} has sha256 {seen}, expected {META_SHA256}: not the fixed draw")
        if absent:
            problems.append(f"{len(absent):,} of the drawn images are not there, the first: {absent[0]}")
        if len(drawn) != wanted:
            problems.append(f"{len(drawn):,} images, expected {wanted:,}")
        return Chosen([i for i in drawn if i in here], "; ".join(problems))

    @classmethod
    def notes_of(cls, root: Path) -> list[str]:
        return ["drawn from MJHQ-30K by a fixed rule (sha256 of the name, the same number of each category): not the "
                "paper's draw, which is not published"]  # fmt: skip
