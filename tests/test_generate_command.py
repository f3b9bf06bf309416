"""`python -m lactok.generate`: prompts to files, the benchmark's own images, and what is said of bad arguments."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lactok.generate import DEFAULT, MARGIN, UsageError, main, parse
from lactok.registry import entries
from tests.commands import Command, evals
from tests.support import ROOT, environment
from tests.tiny_generator import captioned_gpt, quick, write_gpt

NAME = "generator=llamagen-t2i-mini"
PROMPTS = ["a red circle", "two blue squares", "a green star above a key"]


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with quick():
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt(tmp_path_factory.mktemp("gpt") / "gpt=1.safetensors", captioned_gpt())


def generate(gpt: Path, *arguments: str, status: int = 0) -> None:
    assert main([*arguments, NAME, "device=cpu", f"options.gpt={gpt}"]) == status


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def parts(grid: np.ndarray, rows: int, columns: int, side: int = 64) -> list[np.ndarray]:
    """The images of a grid, row by row."""
    step = side + MARGIN
    assert grid.shape == (rows * step, columns * step, 3)
    starts = [(row * step, column * step) for row in range(rows) for column in range(columns)]
    return [grid[top : top + side, left : left + side] for top, left in starts]


@pytest.fixture(scope="module")
def folder(gpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each prompt, one with signs of its own."""
    out = tmp_path_factory.mktemp("images") / "images"
    generate(gpt, *PROMPTS, f"out={out}", "count=2", "seed=3", "batch=4")
    return out


def test_a_folder_has_each_image_and_the_grid(folder: Path):
    names = [f"{place:05d}-{index}.png" for place in range(3) for index in range(2)]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "grid.png", "prompts.txt"]
    images = [pixels(folder / name) for name in names]
    assert all(np.array_equal(a, b) for a, b in zip(images, parts(pixels(folder / "grid.png"), 3, 2), strict=True))
    assert len({image.tobytes() for image in images}) == 6
    assert (folder / "prompts.txt").read_text().splitlines() == PROMPTS


def test_one_prompt_is_one_image_whatever_stands_beside_it(gpt: Path, folder: Path, tmp_path: Path, capsys):
    out = tmp_path / "deeper" / "one.png"
    generate(gpt, PROMPTS[1], f"out={out}", "seed=3")
    assert np.abs(pixels(out).astype(int) - pixels(folder / "00001-0.png")).max() <= 1
    said = capsys.readouterr()
    assert f"done: 1 image(s) in {out} by llamagen-t2i-mini" in said.out
    assert "guidance_scale 1.5, temperature 0.3, top_k 100" in said.out
    assert "seed 3" in said.out
    assert "vocabulary" not in said.err


def test_several_prompts_are_a_grid(gpt: Path, folder: Path, tmp_path: Path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbf" + f"\r\n {PROMPTS[1]} \r\n\n{PROMPTS[2]}\n".encode())
    out = tmp_path / "grid.webp"
    generate(gpt, PROMPTS[0], f"prompts={file}", f"out={tmp_path / 'grid.png'}", "seed=3")
    for place, image in enumerate(parts(pixels(tmp_path / "grid.png"), 3, 1)):
        assert np.abs(image.astype(int) - pixels(folder / f"{place:05d}-0.png")).max() <= 1
    generate(gpt, "a key", f"out={out}")
    assert Image.open(out).format == "WEBP"


def test_another_seed_gives_other_images(gpt: Path, folder: Path, tmp_path: Path):
    generate(gpt, PROMPTS[0], f"out={tmp_path / 'other.png'}", "seed=4")
    assert not np.array_equal(pixels(tmp_path / "other.png"), pixels(folder / "00000-0.png"))


def test_the_benchmark_makes_the_same_images(gpt: Path, folder: Path, tmp_path: Path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    done = evals(
        "suite=generate", "generators=llamagen-t2i-mini", f"options.llamagen-t2i-mini.gpt='{gpt}'", "device=cpu",
        f"dataset.root={prompts}", "seeds=2", "seed=3", f"out={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    images = [image for file in (tmp_path / "out" / "cache" / "images").glob("*/*.safetensors") for image in kept(file)]
    assert len(images) == 6
    assert all(image.shape == (64, 64, 3) and image.std() > 5 for image in images)
    wanted = {pixels(file).tobytes() for file in folder.glob("0*.png")}
    assert {image.tobytes() for image in images} == wanted


def kept(file: Path) -> list[np.ndarray]:
    """The images of an entry of the benchmark's cache: PNG files end to end."""
    stored = load_file(file)
    octets, ends = bytes(stored["png"].tolist()), [0, *stored["ends"].tolist()]
    return [np.asarray(Image.open(BytesIO(octets[a:b]))) for a, b in pairwise(ends)]


def test_unknown_words_are_noted(gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    generate(gpt, "a zebra 🦓 and a red circle", "a\r\nlion \x1b", f"out={tmp_path / 'a'}")
    assert capsys.readouterr().err == "note: not in the vocabulary, all taken for one word: \\x1b, lion, zebra, 🦓\n"
    said = (tmp_path / "a" / "prompts.txt").read_text().splitlines()
    assert said == ["a zebra 🦓 and a red circle", "a lion \x1b"], "a line each"


def test_prompts_with_signs():
    given = ["a sign that says E=mc2", "x = 5", "1=1", "Out=side", "🦊=fox", "- a list", "--", ""]
    request = parse([*given, "out=a.png", "options.gpt=/a=b/c", "options.top_k=5"])
    assert request.prompts == given
    assert request.options == {"gpt": "/a=b/c", "top_k": "5"}
    assert request.generator == DEFAULT
    assert DEFAULT in entries("generators")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out=a.png"], "no prompt: "),
        (["a cat"], "out is missing: out=scene.png"),
        (["a cat", "out="], "out is missing"),
        (["a cat", "out=a.png", "count=0"], "count=0: expected a whole number of at least 1"),
        (["a cat", "out=a.png", "count=many"], "count=many: expected a whole number of at least 1"),
        (["a cat", "out=a.png", "seed=-1"], "seed=-1: expected a whole number of at least 0"),
        (["a cat", "out=a.png", "batch=0.5"], "batch=0.5: expected a whole number"),
        (["a cat", "out=a.png", "device=tpu"], "device=tpu: expected auto, cpu or cuda"),
        (["a cat", "out=a.png", "cuont=3"], "'cuont=3': expected KEY=VALUE with KEY one of out, prompts, generator"),
        (["a cat", "out=a.png", "options.a.b=3"], "'options.a.b=3': expected KEY=VALUE"),
        (["a cat", "out=a.png", "options.lactokgen-t-mini.guidance_scale=9"], "guidance_scale=9': expected KEY=VALUE"),
        (["a cat", "out=a.png", "options.top-k=5"], "'options.top-k=5': expected KEY=VALUE"),
        (["a cat", "out=a.png", "guidance-scale=3"], "'guidance-scale=3': expected KEY=VALUE"),
        (["a cat", "out=a.png", "--batch-size=3"], "'--batch-size=3': expected KEY=VALUE"),
        (["a cat", "out=a.png", "--count=3"], "'--count=3': expected KEY=VALUE"),
        (["a cat", "out=a.png", "--count", "3"], "'--count': expected KEY=VALUE"),
        (["e=mc", "out=a.png"], "a prompt of this form stands in prompts=FILE"),
        (["a cat", "out=a.gif"], "out=a.gif: expected a file ending in .png, .jpg"),
        (["a cat", "out=v1.5"], "out=v1.5: expected a file ending in .png"),
        (["prompts=absent.txt", "out=a.png"], "prompts=absent.txt can't be read: "),
        (["half \udc80 of", "out=a.png"], r"the prompt 'half \udc80 of' is no valid Unicode"),
    ],
)
def test_bad_arguments_are_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError):
        parse(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generator=lactokgen-x-mini"], "did you mean"),
        (["generator=folder"], "generator=folder holds images that others made: expected one that makes them"),
        (["options.guidance=2"], "unknown option 'options.guidance': did you mean 'options.guidance_scale'"),
        (["options.top_k=some"], "options.top_k='some': expected int"),
        (["options.temperature=nan"], "temperature=nan"),
        (["generator=sd1.5", "options.dtype=int8"], "options.dtype='int8': expected one of float16, bfloat16, float32"),
        (["options.together=0"], "options: together 0: expected at least 1"),
        (["options.temperature=-2"], "temperature=-2.0, top_k=100, top_p=1.0): expected temperature >= 0"),
        (["options.gpt=absent.safetensors"], "absent.safetensors"),
        (["device=cuda"], "device=cuda: torch finds no CUDA device here"),
    ],
)
def test_what_a_generator_refuses_is_explained(
    gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    if "device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    out = tmp_path / "a.png"
    given = [NAME, "device=cpu", f"options.gpt={gpt}"]
    replaced = [one for one in given if not any(one.partition("=")[0] == a.partition("=")[0] for a in arguments)]
    if arguments[0] in ("generator=folder", "generator=sd1.5"):
        replaced.pop()
    assert main(["a cat", f"out={out}", *replaced, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_files_that_can_not_be_are_explained(gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    generate(gpt, "a cat", f"out={tmp_path / 'file' / 'a.png'}", status=2)
    said = capsys.readouterr().err
    assert "can't write" in said
    assert said.endswith("Nothing was generated\n")
    generate(gpt, "a cat", f"out={tmp_path / 'file'}", status=2)
    assert "can't write" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n \n")
    generate(gpt, f"prompts={tmp_path / 'empty.txt'}", f"out={tmp_path / 'a.png'}", status=2)
    assert "empty.txt holds no prompt" in capsys.readouterr().err
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    generate(gpt, f"prompts={tmp_path / 'latin.txt'}", f"out={tmp_path / 'a.png'}", status=2)
    assert "expected UTF-8 text, a prompt a line" in capsys.readouterr().err


def test_a_folder_with_other_images_is_refused(gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "images"
    generate(gpt, "a key", f"out={out}", "count=2")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    generate(gpt, "a cup", f"out={out}", "count=2", status=2)
    assert f"out={out} holds images of other prompts ({out / 'prompts.txt'}): name another" in capsys.readouterr().err
    generate(gpt, "a key", f"out={out}", status=2)
    assert f"out={out} holds 00000-1.png, which this command would not make" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    generate(gpt, "a key", f"out={out}", "count=2")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_grid_that_is_too_large_is_refused_at_the_first_image_or_left_out(
    gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lactok.generate.SIDES", {"WEBP": 100})
    generate(gpt, "a key", "a cup", f"out={tmp_path / 'a.webp'}", status=2)
    said = capsys.readouterr().err
    assert "a grid of 2 images would have 68 x 136 pixels, and WEBP holds 100 a side; name a folder" in said
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9000)
    generate(gpt, "a key", "a cup", f"out={tmp_path / 'a.png'}", status=2)
    assert "68 x 136 pixels, more than the 9,000 that Pillow opens; name a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    generate(gpt, "a key", "a cup", f"out={tmp_path / 'out'}")
    assert "without grid.png: a grid of 2 images" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000-0.png", "00001-0.png", "prompts.txt"]


def test_a_folder_may_have_a_dot(gpt: Path, tmp_path: Path):
    (tmp_path / "v1.5").mkdir()
    generate(gpt, "a key", f"out={tmp_path / 'v1.5'}")
    assert (tmp_path / "v1.5" / "00000-0.png").is_file()


def test_the_command_as_users_run_it(gpt: Path, tmp_path: Path):
    """Bytes of the command line that are no UTF-8 are named, too."""
    given = ["-m", "lactok.generate", "a red circle", f"out={tmp_path / 'a.png'}", NAME, f"options.gpt={gpt}"]
    done = Command([*given, "device=cpu"], environment()).end()
    assert (done.returncode, done.stderr) == (0, "")
    assert Image.open(tmp_path / "a.png").size == (64, 64)
    raw = subprocess.run(
        [sys.executable, "-m", "lactok.generate", b"caf\xe9", b"out=a.png"], cwd=ROOT, capture_output=True, text=True
    )
    assert raw.returncode == 2
    assert "error: the prompt 'caf\\udce9' is no valid Unicode: give it as UTF-8" in raw.stderr


def test_help_comes_without_torch():
    code = (
        "import sys; from lactok.generate import main; status = main(['--help']); "
        "assert not {'torch', 'numpy', 'omegaconf'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m lactok.generate PROMPT" in done.stdout
    assert main([]) == 2
