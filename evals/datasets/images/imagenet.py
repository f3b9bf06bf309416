"""ImageNet's validation images (ILSVRC 2012): 50,000, without labels.

An image is named ILSVRC2012_val_NNNNNNNN in every distribution: in the flat tar of the challenge, in class folders
made from it, and, followed by the class, in the hub's archive and parquet shards. That stem is the id.
"""

from __future__ import annotations

import re

from evals.datasets.images.paper import PaperDataset, is_image

_STEM = re.compile(r"ILSVRC2012_val_\d{8}")


class ImageNetVal(PaperDataset):
    """ImageNet's validation images, without labels."""

    name = "imagenet-val"
    expected = 50_000  # Russakovsky et al. 2015, table 2
    summary = "ImageNet validation, 50,000 images: folder (flat or class folders), tar, tar.gz or parquet shards"
    obtain = (
        "ImageNet is given to registered researchers only: accept its terms at https://image-net.org/download.php "
        "and place ILSVRC2012_img_val.tar in that folder (it is read in place), or at "
        "https://huggingface.co/datasets/ILSVRC/imagenet-1k and place the validation-*.parquet shards there: "
        "`hf download ILSVRC/imagenet-1k --repo-type dataset --revision 49e2ee26f3810fb5a7536bbf732a7b07389a47b5 "
        "--include 'data/validation-*.parquet' --local-dir DIR` (6.7 GB, after `hf auth login`), or "
        "data/val_images.tar.gz of revision 1500f8c59b214ce459c0a593fa1c87993aeb7700"
    )
    archives = ("ILSVRC2012_img_val.tar", "val_images.tar", "ILSVRC2012_img_val.tar.gz", "val_images.tar.gz",
                "data/val_images.tar.gz")  # fmt: skip
    shards = ("val*.parquet", "*/val*.parquet", "*val*/*.parquet", "*/*val*/*.parquet")
    folders = ("val", "ILSVRC2012_img_val", ".")

    @staticmethod
    def item_id(name: str) -> str | None:
        """ "val/n01440764/ILSVRC2012_val_00000293.JPEG" to "ILSVRC2012_val_00000293"; None for any other name."""
        stem = _STEM.match(name.rsplit("/", 1)[-1])
        return stem[0] if stem and is_image(name) else None
