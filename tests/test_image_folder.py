"""Images that another system made: GenEval's folders and tables of prompts and files, through the engine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from baselines.generators.recorded.adapter import ImageFolder, ImageFolderOptions
from baselines.generators.recorded.layout import read_layout
from lactok.interface import Item, ItemsRefused
from lactok.weights import MissingWeights, WeightsError, identity_of, locate_all
from tests.commands import evals
from tests.support import install_plugin, table, the_run
from tests.test_generation import NAMES, PAINT

CPU = torch.device("cpu")
COLOURS = {"a red ball": (255, 0, 0), "a green sky": (0, 255, 0), "a blue cup": (0, 0, 255)}


def geneval(root: Path, samples: int = 2, name: str = "{:05d}.png") -> Path:
    """Folders as GenEval's script writes them, with its grid; sizes differ."""
    for number, (prompt, colour) in enumerate(COLOURS.items()):
        folder = root / f"{number:05d}"
        (folder / "samples").mkdir(parents=True)
        (folder / "metadata.jsonl").write_text(json.dumps({"tag": "colors", "prompt": prompt}))
        Image.new("RGB", (8, 8)).save(folder / "grid.png")
        for sample in range(samples):
            Image.new("RGB", (16 + 8 * number, 16 + sample), colour).save(folder / "samples" / name.format(sample))
    return root


def build(root: Path, **more) -> ImageFolder:
    options = ImageFolderOptions(str(root), **more)
    locate_all(ImageFolder.weights(options))
    return ImageFolder(options, CPU)


def items(*prompts: str) -> list[Item]:
    return [Item(str(n), str(n), "0" * 64, prompt) for n, prompt in enumerate(prompts)]


def identity(root: Path, **more) -> str:
    (source,) = ImageFolder.weights(ImageFolderOptions(str(root), **more))
    return identity_of(source)


@pytest.mark.parametrize("name", ["{:04d}.png", "{:05d}.png", "{:04d}.jpg", "sample-{}.webp"])
def test_genevals_folders(tmp_path: Path, name: str):
    model = build(geneval(tmp_path, name=name))
    assert not model.info.deterministic
    red, green = model.images(items("a red ball", "a green sky\n"), [1, 0])
    assert (red.shape, green.shape) == ((3, 17, 16), (3, 16, 24))
    assert red.dtype == torch.float32
    assert red[0].min() > 0.95
    assert green[1].min() > 0.95
    assert build(geneval(tmp_path / "one", samples=1)).info.deterministic


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl"])
def test_tables_of_prompts_and_files(tmp_path: Path, ending: str):
    (tmp_path / "images").mkdir()
    rows = []
    for number, (prompt, colour) in enumerate(COLOURS.items()):
        Image.new("RGB", (9, 9), colour).save(tmp_path / "images" / f"{number}.png")
        rows.append({"prompt": prompt, "file": f"images/{number}.png", "seed": number})
    rows.append({"prompt": "a red ball", "file": str(tmp_path / "images" / "2.png"), "seed": 3})
    path = tmp_path / f"table.{ending}"
    if ending == "csv":
        pd.DataFrame(rows).to_csv(path, index=False, encoding="utf-8-sig")
    else:
        path.write_text(json.dumps(rows) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    model = build(path)
    first, second = model.images(items("a red ball", "a red ball"), [0, 1])
    assert first[0].min() == 1
    assert second[2].min() == 1
    before = identity(path)
    path.write_text(path.read_text().replace("a red ball", "a blue ball"))
    assert identity(path) != before, "which image is whose is part of what was recorded"


def test_what_was_recorded_is_known_by_names_and_contents_wherever_it_lies(tmp_path: Path):
    a, b = geneval(tmp_path / "a"), geneval(tmp_path / "b")
    assert identity(a) == identity(b)
    Image.new("RGB", (16, 16), "white").save(b / "00000" / "samples" / "00000.png")
    assert identity(a) != identity(b)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "RGB"])
def test_images_of_any_mode_are_decoded_as_datasets_are(tmp_path: Path, mode: str):
    pixels = np.zeros((5, 7), np.uint16) if mode == "I;16" else None
    image = Image.fromarray(pixels) if pixels is not None else Image.new("RGB", (7, 5)).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(0)
    image.save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    (tmp_path / "table.csv").write_text(f"prompt,file\nx,{'a.tif' if mode == 'CMYK' else 'a.png'}\n")
    (made,) = build(tmp_path / "table.csv").images(items("x"), [0])
    assert made.shape == (3, 5, 7)
    assert made.unique().tolist() == [1.0 if mode in ("LA", "RGBA") else 0.0], "alpha is over white"


def test_all_missing_images_are_listed_at_once(tmp_path: Path):
    root = geneval(tmp_path, samples=3)
    absent = [root / "00000" / "samples" / "00001.png", root / "00002" / "samples" / "00002.png"]
    for file in absent:
        file.unlink()
    for file in (root / "00001" / "samples").iterdir():
        file.unlink()
    with pytest.raises(MissingWeights, match="5 of 12 files are missing") as caught:
        build(root)
    listed = re.findall(r"\n  (\S+)", str(caught.value))
    assert listed == [
        str(root / folder / "samples" / name)
        for folder, names in (("00000", ["0001.png"]), ("00001", ["0000.png", "0001.png", "0002.png"]))
        for name in names
    ] + [str(root / "00002" / "samples" / "0002.png")]
    model = build(root, missing="refuse")
    with pytest.raises(ItemsRefused) as refused:
        model.images(items("a red ball", "a red ball", "a green sky", "another"), [0, 1, 0, 0])
    assert list(refused.value.reasons) == [1, 2, 3]
    assert "0001.png is missing" in refused.value.reasons[1]
    assert "no image of the prompt 'another'" in refused.value.reasons[3]
    with pytest.raises(ItemsRefused, match="not the one of index 3"):
        model.images(items("a red ball"), [3])


def test_files_that_are_no_images_and_too_large_ones_are_refused_by_name(tmp_path: Path):
    root = geneval(tmp_path)
    (root / "00000" / "samples" / "00000.png").write_bytes(b"")
    (root / "00001" / "samples" / "00000.png").write_bytes(b"no image")
    with pytest.raises(ItemsRefused) as refused:
        build(root, max_pixels=400).images(items(*COLOURS), [0, 0, 0])
    reasons = refused.value.reasons
    assert "00000/samples/00000.png: the file is empty" in reasons[0]
    assert "not an image" in reasons[1]
    assert "too large" in reasons[2]
    assert "options.folder.max_pixels=N" in reasons[2]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "prompt,path\na,b\n", "entry 1: file is None"),
        (
            "t.csv",
            "prompt,file\n ,b\na,\n",
            r"2 entries can't be used.*\n.*1: prompt is ' '.*\n.*2: file is ''",
        ),
        ("t.csv", "prompt,file\n", "names no images"),
        ("t.csv", "prompt,file\na,b\nc,b\na ,b\n", "1 entries can't be used.*\n.*entry 3: .*b is there twice"),
        ("t.json", '{"a": "b.png"}', "it is dict: expected a list"),
        ("t.json", "[1]", "entry 1: it is int"),
        ("t.jsonl", "no\n", "can't be read"),
        ("t.txt", "a\n", "expected a folder of GenEval's layout"),
    ],
)
def test_bad_tables_are_refused_with_the_entries(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(WeightsError, match=message):
        read_layout(tmp_path / name)


def test_bad_folders_are_refused_with_their_entries(tmp_path: Path):
    with pytest.raises(WeightsError, match="holds no NNNNN/metadata"):
        read_layout(tmp_path)
    root = geneval(tmp_path)
    (root / "00000" / "metadata.jsonl").write_text("[]")
    (root / "00001" / "metadata.jsonl").unlink()
    Image.new("RGB", (8, 8)).save(root / "00002" / "samples" / "0000.jpg")
    with pytest.raises(WeightsError, match="3 entries can't be used") as caught:
        read_layout(root)
    for said in ("it is list", "00001 has samples and no metadata.jsonl", "two files of", "have one number"):
        assert said in str(caught.value)
    with pytest.raises(MissingWeights, match="does not exist"):
        read_layout(tmp_path / "absent")


def test_numbers_beside_other_names_are_refused(tmp_path: Path):
    root = geneval(tmp_path)
    samples = root / "00001" / "samples"
    Image.new("RGB", (8, 8)).save(samples / "grid.png")
    with pytest.raises(WeightsError, match=r"numbered images and grid\.png: expected numbers alone, or none"):
        read_layout(root)


def test_names_that_are_no_numbers_of_samples_are_refused(tmp_path: Path):
    """Such as dates, of which a list of all numbers up to them would not fit into memory."""
    root = geneval(tmp_path)
    (root / "00001" / "samples" / "00001.png").rename(root / "00001" / "samples" / "20260131154512.png")
    with pytest.raises(WeightsError, match=r"has 20260131154512\.png: expected numbers of samples, from 0 to 9,999"):
        read_layout(root)


def test_metadata_may_begin_with_a_byte_order_mark(tmp_path: Path):
    root = geneval(tmp_path)
    metadata = root / "00000" / "metadata.jsonl"
    metadata.write_bytes(b"\xef\xbb\xbf" + metadata.read_bytes())
    assert len(read_layout(root).files("a red ball")) == 2


def test_two_systems_are_judged_side_by_side(tmp_path: Path):
    plugin = install_plugin(tmp_path / "plugin", "paintplugin", PAINT, {}, **NAMES)
    right, wrong = geneval(tmp_path / "right", samples=3), geneval(tmp_path / "wrong", samples=3)
    for file in wrong.glob("*/samples/*"):
        Image.new("RGB", (16, 16), "red").save(file)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p, "task": "objects"}) + "\n" for p in [*COLOURS, "a red cat"]))
    done = evals(
        "suite=generate", "generators=folder", f"options.folder.root=[{right},{wrong}]", f"dataset.root={prompts}",
        "metrics=[judge]", "seeds=3", "device=cpu", f"out={tmp_path / 'out'}", plugins=(plugin,),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = table(tmp_path / "out")["right"]
    assert found["folder[root=right]"] == 1
    assert found["folder[root=wrong]"] == pytest.approx(1 / 3, abs=1e-4)
    report = (the_run(tmp_path / "out") / "report.md").read_text()
    assert "has no image of the prompt 'a red cat'" in report
    assert f"`images of {right}`, sha256" in report
    (right / "00000" / "samples" / "00001.png").unlink()
    done = evals(
        "suite=generate", "generators=folder", f"options.folder.root={right}", f"dataset.root={prompts}",
        "metrics=[judge]", "device=cpu", f"out={tmp_path / 'again'}", plugins=(plugin,),
    )  # fmt: skip
    assert done.returncode == 2
    assert "1 of 12 files are missing" in done.stderr
    assert "options.folder.missing=refuse" in done.stderr
