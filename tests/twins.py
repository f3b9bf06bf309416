"""Tiny twins of the paper's datasets: the layouts and names of the real ones, with a dozen real small photographs."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from skimage import data

from evals.datasets.images import make_flux
from evals.datasets.images.mjhq import CATEGORIES

COUNT = 12
CLASSES = ("n01440764", "n01443537", "n01484850")


@cache
def jpeg(index: int) -> bytes:
    """A cut of 64 x 48 pixels of scikit-image's coffee cup or cat, another for each index below 100."""
    sources = (data.coffee(), data.chelsea())
    x, y = (37 * index) % 300, (23 * index) % 200
    buffer = io.BytesIO()
    Image.fromarray(sources[index % 2][y : y + 48, x : x + 64]).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_parquet(path: Path, files: dict[str, bytes], rows: int = 3) -> Path:
    """One shard as the hub writes it: image of struct{bytes, path}, and a label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": content, "path": name} for name, content in files.items()]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "label": pa.array([0] * len(images), pa.int64())})
    pq.write_table(table, path, row_group_size=rows)
    return path


def imagenet(root: Path, form: str) -> Path:
    """form: flat, classes, tar, tar.gz or parquet (other order, class in the names, two shards)."""
    flat = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": jpeg(i) for i in range(COUNT)}
    classed = {n.replace(".", f"_{CLASSES[i % 3]}."): content for i, (n, content) in enumerate(flat.items())}
    shuffled = sorted(classed.items(), key=lambda item: sha256(item[0].encode()).digest())
    if form == "flat":
        return write_folder(root, flat)
    if form == "classes":
        return write_folder(root / "val", {f"{CLASSES[i % 3]}/{n}": c for i, (n, c) in enumerate(flat.items())}).parent
    if form == "tar":
        return write_tar(root / "ILSVRC2012_img_val.tar", flat).parent
    if form == "tar.gz":
        return write_tar(root / "data" / "val_images.tar.gz", classed, "w:gz").parent.parent
    for shard, part in enumerate((shuffled[:7], shuffled[7:])):
        write_parquet(root / "data" / f"validation-{shard:05d}-of-00002.parquet", dict(part))
    write_parquet(root / "data" / "train-00000-of-00001.parquet", {"n01440764_10026_n01440764.JPEG": jpeg(50)})
    return root


def coco_files() -> dict[str, bytes]:
    return {f"val2017/{139 + 146 * i:012d}.jpg": jpeg(i) for i in range(COUNT)}


def coco_captions() -> bytes:
    """Two captions an image; the second one, in the order of the file, has the smaller id."""
    numbers = [(139 + 146 * i, i) for i in range(COUNT)]
    first = [{"image_id": image, "id": 1000 + i, "caption": f"A later caption of {i}.\n"} for image, i in numbers]
    second = [{"image_id": image, "id": i, "caption": f"A photograph, number {i}."} for image, i in numbers]
    return json.dumps({"annotations": first + second}).encode()


def coco(root: Path, form: str) -> Path:
    """form: zip (annotations in their zip, too) or folder (with annotations/captions_val2017.json)."""
    if form == "zip":
        write_zip(root / "annotations_trainval2017.zip", {"annotations/captions_val2017.json": coco_captions()})
        return write_zip(root / "val2017.zip", coco_files()).parent
    return write_folder(root, {**coco_files(), "annotations/captions_val2017.json": coco_captions()})


def mjhq_files() -> dict[str, bytes]:
    """Three images in each of the ten categories."""
    names = [
        (category, sha256(f"{category} {i}".encode()).hexdigest()[:20]) for category in CATEGORIES for i in range(3)
    ]
    return {f"{category}/{name}.jpg": jpeg(i) for i, (category, name) in enumerate(names)}


def mjhq_meta() -> bytes:
    entries = [name.removesuffix(".jpg").split("/") for name in mjhq_files()]
    return json.dumps(
        {name: {"category": category, "prompt": f"{category} {name}"} for category, name in entries}
    ).encode()


def mjhq(root: Path, form: str) -> Path:
    """form: zip (with meta_data.json) or folder."""
    if form == "zip":
        write_folder(root, {"meta_data.json": mjhq_meta()})
        return write_zip(root / "mjhq30k_imgs.zip", mjhq_files()).parent
    return write_folder(root / "mjhq30k_imgs", mjhq_files()).parent


def paint(prompt: str, seed: int) -> Image.Image:
    """In the place of FLUX.1-dev: noise of 16 x 16 pixels from prompt and seed."""
    rng = np.random.default_rng([seed, len(prompt)])
    return Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))


def flux(root: Path, count: int = COUNT) -> Path:
    """A folder as make-flux writes it."""
    prompts = [f"a photograph of {i} cups" for i in range(count)]
    for _ in make_flux.make(prompts, make_flux.pending(prompts, root), root, paint):
        pass
    return root
