"""Colour profiles of image files: ignored and counted, or converted to sRGB, and the two never mixed."""

import dataclasses
import io
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from evals import record
from evals.cli.score import main as score
from evals.config import compose_config
from evals.datasets import registry
from evals.datasets.base import DatasetError, DatasetRequest
from evals.datasets.images.photos import load_source
from evals.tasks.protocol import ReconstructionProtocol
from lactok.images import decode as rules
from lactok.images.colour import is_srgb
from lactok.images.decode import Decoding, ImageError, decode
from tests.plugin_runs import plugin, rows, run
from tests.support import TOY

# Colorants relative to D50, columns R, G, B: of the ICC's sRGB profile, and of Adobe RGB (1998).
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
GAMMA = 2.19921875
CONVERT = Decoding(colour="srgb")


def profile(gamma: float, colorants: np.ndarray | None = None) -> bytes:
    """A version 2 ICC profile: matrix and gamma, or, without colorants, of grey."""

    def xyz(values) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 79
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz((0.9642, 1, 0.8249))}
    if colorants is None:
        tags[b"kTRC"] = curve
    else:
        tags |= {name: curve for name in (b"rTRC", b"gTRC", b"bTRC")}
        tags |= {name: xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colorants.T)}
    offset, table, content = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", offset + len(content), len(data))
        content += data
    space = b"GRAY" if colorants is None else b"RGB "
    head = struct.pack(">I4sI4s4s4s12s4s", offset + len(content), b"none", 0x02100000, b"mntr", space, b"XYZ ",
                       b"\x07\xe8\0\1\0\1\0\0\0\0\0\0", b"acsp")  # fmt: skip
    head += b"\0" * (68 - len(head)) + struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + content


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def expected(pixels: np.ndarray, colorants: np.ndarray, gamma: float) -> np.ndarray:
    linear = np.linalg.solve(SRGB, colorants) @ ((pixels.reshape(-1, 3) / 255.0) ** gamma).T
    linear = linear.clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (encoded.T * 255).reshape(pixels.shape)


@pytest.fixture(scope="module")
def cat() -> np.ndarray:
    return load_source("chelsea.png")[60:150, 100:220].copy()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_a_profile_is_ignored_and_told_or_converted_by(cat: np.ndarray, format: str):
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.fromarray(cat), format, icc_profile=profile(GAMMA, ADOBE), **options)
    plain, managed = decode(data), decode(data, CONVERT)
    assert np.array_equal(plain.pixels, cat)
    assert plain.notes == (rules.NOTE_PROFILE,)
    assert managed.notes == (rules.NOTE_CONVERTED,)
    assert np.abs(managed.pixels - expected(cat, ADOBE, GAMMA)).max() < 2
    assert np.abs(managed.pixels.astype(int) - cat).max() > 10, "it matters"


def test_srgb_and_no_profile_are_left_as_they_are(cat: np.ndarray):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for options in ({"icc_profile": srgb}, {}):
        data = encoded(Image.fromarray(cat), **options)
        assert decode(data).notes == decode(data, CONVERT).notes == ()
        assert np.abs(decode(data, CONVERT).pixels.astype(int) - cat).max() <= 1


def test_grey_palette_and_alpha(cat: np.ndarray):
    grey = Image.fromarray(cat).convert("L")
    data = encoded(grey, icc_profile=profile(1.8))
    linear = np.asarray(grey)[..., None].repeat(3, axis=2)
    neutral = np.abs(decode(data, CONVERT).pixels - expected(linear, SRGB, 1.8))
    assert neutral.max() < 2
    assert decode(data).notes == (rules.NOTE_PROFILE,)
    adobe = profile(GAMMA, ADOBE)
    palette = Image.fromarray(cat).quantize(32)
    want = expected(np.asarray(palette.convert("RGB")), ADOBE, GAMMA)
    assert np.abs(decode(encoded(palette, icc_profile=adobe), CONVERT).pixels - want).max() < 2
    alpha = np.tile(np.linspace(0, 255, cat.shape[1]).astype(np.uint8), (cat.shape[0], 1))
    over = decode(encoded(Image.fromarray(np.dstack([cat, alpha])), icc_profile=adobe), CONVERT).pixels
    share = alpha[..., None] / 255
    assert np.abs(over - (expected(cat, ADOBE, GAMMA) * share + 255 * (1 - share))).max() < 2.5
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    same = decode(encoded(sixteen, icc_profile=profile(1.8)), CONVERT).pixels
    assert np.array_equal(same, decode(data, CONVERT).pixels)


@pytest.mark.parametrize("icc", [b"no profile at all", profile(GAMMA, ADOBE)[:200]])
def test_a_profile_that_can_not_be_read_is_a_note_or_a_bad_image(cat: np.ndarray, icc: bytes):
    data = encoded(Image.fromarray(cat), icc_profile=icc)
    assert np.array_equal(decode(data).pixels, cat)
    assert decode(data).notes == (rules.NOTE_BAD_PROFILE,)
    with pytest.raises(ImageError, match="profile can't be used"):
        decode(data, CONVERT)


def test_a_profile_of_another_kind_of_image_is_a_bad_image(cat: np.ndarray):
    data = encoded(Image.fromarray(cat).convert("CMYK"), "JPEG", icc_profile=profile(GAMMA, ADOBE))
    assert decode(data).notes == (rules.NOTE_PROFILE,)
    with pytest.raises(ImageError, match="is for RGB, the image is CMYK"):
        decode(data, CONVERT)


def test_a_vendors_srgb_is_srgb():
    assert is_srgb(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert not is_srgb(profile(GAMMA, ADOBE))
    assert not is_srgb(profile(1.0))


# --- the protocol's field


def test_the_default_is_what_was_done_before_there_was_the_field():
    plain, managed = (compose_config(o).make_protocol() for o in ([], ["protocol.colour=srgb"]))
    assert plain.hash == "dc63a1535e56" == compose_config(["protocol.colour=ignore"]).make_protocol().hash
    assert managed.hash != plain.hash
    assert isinstance(plain, ReconstructionProtocol)
    assert "colour" not in plain.evaluation_fields
    assert managed.evaluation_fields == plain.evaluation_fields | {"colour": "srgb"}
    assert managed.native_fields != plain.native_fields
    assert plain.as_dict()["colour"] == "ignore", "a record says what was done"
    with pytest.raises(ValueError, match="colour"):
        dataclasses.replace(plain, colour="p3")


@pytest.fixture
def wide(tmp_path: Path, cat: np.ndarray) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    (root / "wide.png").write_bytes(encoded(Image.fromarray(cat), icc_profile=profile(GAMMA, ADOBE)))
    (root / "plain.png").write_bytes(encoded(Image.fromarray(cat[::-1])))
    return root


def test_index_and_datasets_follow_it(wide: Path, tmp_path: Path, cat: np.ndarray):
    for colour, note, worst in ((None, rules.NOTE_PROFILE, 0), ("srgb", rules.NOTE_CONVERTED, 255)) * 2:
        request = DatasetRequest(tmp_path / "cache", str(wide), colour=colour)
        dataset = registry.open_dataset("folder", request)
        assert f"1 image(s): {note}" in dataset.notes
        read = {item.id: dataset.read(item) for item in dataset.items}
        moved = np.abs(read["wide.png"].astype(int) - cat).max()
        assert (moved > 10) if worst else moved == 0
        assert np.array_equal(read["plain.png"], cat[::-1])
    with pytest.raises(DatasetError, match=r"protocol\.colour=srgb: dataset=photos"):
        registry.open_dataset("photos", DatasetRequest(tmp_path / "cache", colour="srgb"))


def test_two_runs_of_one_store_do_not_mix(wide: Path, tmp_path: Path):
    usual = ["tokenizers=toy", "metrics=[psnr]"]
    with plugin(tmp_path / "plugin", TOY, {"toy": "Toy"}):
        plain = run(wide, tmp_path / "out", *usual)
        managed = run(wide, tmp_path / "out", *usual, "protocol.colour=srgb")
        alone = run(wide, tmp_path / "other", *usual, "protocol.colour=srgb")
    assert rows(managed)["toy"].cells == rows(alone)["toy"].cells != rows(plain)["toy"].cells
    assert managed.record.protocol["name"] == "mini-128 with colour=srgb"
    assert managed.folder != plain.folder


def test_images_to_be_scored_are_decoded_as_the_references(wide: Path, tmp_path: Path):
    images = tmp_path / "images"
    shutil.copytree(wide, images)
    given = [f"references={wide}", f"images={images}", f"out={tmp_path / 'out'}", "workers=1", "device=cpu", "--quiet"]
    for colour in ("ignore", "srgb"):
        assert score([*given, "metrics=[psnr]", "protocol=mini-128", f"protocol.colour={colour}"]) == 0
    runs = sorted((tmp_path / "out" / "runs").iterdir())
    cells = [row.cells["PSNR"] for folder in runs for row in record.read(folder / "run.json").rows]
    assert [cell.infinite for cell in cells] == [2, 2], "every image is its reference"
