"""`lactok.load` and `evals.evaluate`: the command line's figures from Python, and nothing of the process is changed."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from skimage import data

import evals
import lactok
from evals.cli.compare import NotComparable
from evals.config import ConfigError
from evals.datasets.base import DatasetError
from lactok.interface import Latents, Tokenizer, TokenizerInfo, Tokens
from tests.commands import evals as command
from tests.support import ROOT, TOY, pictures, the_run

NAMESPACE: dict[str, Any] = {}
exec(TOY, NAMESPACE)
Toy: type[Tokenizer] = NAMESPACE["Toy"]
IMAGES = [data.coffee()[:150, :150], data.chelsea()[:150, :190]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("images"))


def psnr(results: evals.Results, row: str = "Toy") -> float:
    return float(results.table.loc[row, "PSNR"])


def test_the_figures_are_the_command_lines(images: Path, tmp_path: Path) -> None:
    names, metrics = ["llamagen-mini", "vq-ladd-mini"], ["psnr", "ssim", "codes"]
    done = command(
        f"tokenizers=[{','.join(names)}]", f"metrics=[{','.join(metrics)}]", "dataset=folder", f"dataset.root={images}",
        "seed=3", "limit=3", "calibration=false", "options.vq-ladd-mini.steps=3", f"out={tmp_path / 'command'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    options, given = {"vq-ladd-mini": {"steps": 3}}, {"seed": 3, "limit": 3, "progress": False}
    results = evals.evaluate(names, images, metrics, out=tmp_path / "python", options=options, **given)
    for name in ("table.csv", "per_image.parquet", "table.parquet"):
        ours = (the_run(tmp_path / "python") / name).read_bytes()
        assert ours == (the_run(tmp_path / "command") / name).read_bytes(), name
    assert results.table.index.tolist() == ["llamagen-mini", "vq-ladd-mini[steps=3]"]
    again = evals.evaluate(["llamagen-mini"], images, metrics, out=tmp_path / "command", limit=3, progress=False)
    assert psnr(again, "llamagen-mini") == psnr(results, "llamagen-mini")


def test_a_built_tokenizer_has_the_figures_of_its_name(images: Path, tmp_path: Path) -> None:
    named = evals.evaluate("llamagen-mini", images, ["psnr"], progress=False, limit=2)
    loaded = evals.evaluate(lactok.load("llamagen-mini", device="cpu"), images, ["psnr"], progress=False, limit=2)
    pd.testing.assert_frame_equal(named.table.drop(columns="training"), loaded.table.drop(columns="training"))
    (tmp_path / "my_tok.py").write_text(TOY)
    filed = evals.evaluate(f"{tmp_path}/my_tok.py:Toy", images, ["psnr"], progress=False)
    classed = evals.evaluate([Toy], images, ["psnr"], progress=False)
    assert psnr(filed) == psnr(classed)


def test_images_in_memory_are_those_of_a_folder(images: Path) -> None:
    files = [Image.open(path) for path in sorted(images.iterdir())]
    arrays = [np.asarray(file) for file in files]
    floats = np.stack(arrays).astype(np.float32) / 255
    tensors = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    wanted = psnr(evals.evaluate([Toy], images, ["psnr"], progress=False))
    for given in (files, floats, tensors):
        results = evals.evaluate([Toy], given, ["psnr"], progress=False)
        assert psnr(results) == wanted
    assert results.record.notes == ["the images were given from Python"]
    assert results.record.config["dataset"]["root"] is None


def test_the_process_is_as_before() -> None:
    class Dropping(Toy):  # type: ignore[misc, valid-type]  # made by exec
        def __init__(self) -> None:
            self.net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Identity().eval())

        def decode(self, encoded: Tokens, seeds: list[int]) -> torch.Tensor:
            assert not self.net.training
            return self.net(super().decode(encoded, seeds))

    model = Dropping()
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    before = torch.random.get_rng_state(), torch.get_float32_matmul_precision(), torch.is_grad_enabled()
    GlobalHydra.instance().clear()
    try:
        results = evals.evaluate({"step 1": model}, IMAGES, ["psnr"], progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert psnr(results, "step 1") == psnr(evals.evaluate([Toy], IMAGES, ["psnr"], progress=False))
    assert model.net.training
    assert model.net[0].training
    assert not model.net[1].training
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (torch.get_float32_matmul_precision(), torch.is_grad_enabled()) == before[1:]
    assert not GlobalHydra.instance().is_initialized()


def test_a_built_tokenizer_is_measured_at_every_call(tmp_path: Path) -> None:
    class Shifted(Toy):  # type: ignore[misc, valid-type]  # made by exec
        def __init__(self) -> None:
            self.shift = 0.0

        def decode(self, encoded: Tokens, seeds: list[int]) -> torch.Tensor:
            return super().decode(encoded, seeds) + self.shift

    model = Shifted()
    first = evals.evaluate([model], IMAGES, ["psnr"], out=tmp_path, progress=False)
    model.shift = 0.3
    assert psnr(evals.evaluate([model], IMAGES, ["psnr"], out=tmp_path, progress=False), "Shifted") < psnr(
        first, "Shifted"
    )


def test_results_compare_and_save(tmp_path: Path) -> None:
    dim = type("Dim", (Toy,), {"decode": lambda self, encoded, seeds: Toy.decode(self, encoded, seeds) / 2})
    results = evals.evaluate([Toy, dim], [*IMAGES, data.astronaut()], ["psnr", "ssim"], progress=False)
    test = results.compare("Toy", "Dim")
    assert test.loc["PSNR", "mean"] == pytest.approx(psnr(results, "Dim") - psnr(results))
    assert test.loc["PSNR", "won"] < 0.5
    assert len(results.per_image) == 6
    folder = results.save(tmp_path / "saved")
    assert (folder / "contact.png").is_file()
    done = command("compare", folder, folder, "--row", "Toy", "Dim", module="evals")
    assert f"PSNR: {test.loc['PSNR', 'mean']:+.4g}" in done.stdout, done.stderr
    assert "| Dim |" in results._repr_markdown_()
    with pytest.raises(NotComparable, match="has no row 'Tyo'"):
        results.compare("Tyo", "Dim")


def test_a_row_that_fails_raises_and_the_others_are_kept() -> None:
    broken = type("Broken", (Toy,), {"decode": lambda self, encoded, seeds: {}["layer"]})
    with pytest.raises(evals.RowsFailed, match="Broken: failed: KeyError: 'layer'") as caught:
        evals.evaluate([Toy, broken], IMAGES, ["psnr"], progress=False)
    assert psnr(caught.value.results) > 5
    assert 'return {}["layer"]' in caught.value.results.traces["Broken"] or "KeyError" in str(caught.value)


class Bare:
    def encode(self) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tokenizers": "llamagen-mni"}, "unknown tokenizer 'llamagen-mni': did you mean 'llamagen-mini'"),
        ({"tokenizers": []}, "tokenizers is empty"),
        ({"tokenizers": [Bare]}, "Bare is no lactok.interface.Tokenizer: .* defines info, decode"),
        ({"tokenizers": [Toy, Toy]}, "two tokenizers are called 'Toy'"),
        ({"tokenizers": {"a": "llamagen-mini"}}, "give names in a list"),
        ({"tokenizers": [Toy], "worker": 2}, "unknown setting 'worker'"),
        ({"tokenizers": [Toy], "metrics": []}, "metrics is empty"),
        ({"tokenizers": [Toy], "protocol": "mini-182"}, "unknown protocol 'mini-182'"),
        ({"tokenizers": [Toy], "precision": "bf16"}, "precision=bf16 changes a model's weights in place"),
        ({"tokenizers": [Toy], "images": [np.zeros((8, 8, 4), np.uint8)]}, r"images: an image has shape \(8, 8, 4\)"),
        ({"tokenizers": [Toy], "images": [np.full((8, 8, 3), 255.0)]}, r"values from 255 to 255: expected floats"),
        ({"tokenizers": [Toy], "dataset": "mjhq-5k"}, "images are given, and dataset=mjhq-5k: expected one of them"),
        ({"tokenizers": [Toy], "images": 3}, "images are int: expected a PIL image"),
        ({"tokenizers": [Toy], "suite": "generate"}, "suite=generate is of generation"),
        ({"tokenizers": [Toy], "options": {"Toy": {"size": 3}}}, "Toy has no options"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        evals.evaluate(**{"images": IMAGES, "metrics": ["psnr"], "progress": False} | arguments)


def test_load_takes_every_form_of_image() -> None:
    tokenizer = lactok.load("llamagen-mini", device="cpu")
    array = data.astronaut()[:64, :64]
    wanted = tokenizer.tokenizer.encode(torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255)
    assert isinstance(wanted, Tokens)
    for image in (
        array,
        Image.fromarray(array),
        array.astype(np.float32) / 255,
        torch.from_numpy(array).permute(2, 0, 1),
    ):
        for given in (image, [image]):
            found = tokenizer.encode(given)
            assert isinstance(found, Tokens)
            assert torch.equal(found.ids, wanted.ids)
    pixels = tokenizer.decode(wanted)
    assert isinstance(pixels, torch.Tensor)
    assert pixels.shape == (1, 3, 64, 64)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    arrays = tokenizer.decode(wanted.ids, form="numpy")
    assert isinstance(arrays, np.ndarray)
    assert np.array_equal(arrays[0], np.asarray(tokenizer.decode(wanted, form="pil")[0]))
    grey = tokenizer.encode(array[..., 0])
    assert isinstance(grey, Tokens)
    with pytest.raises(ValueError, match=r"190 x 150 pixels.*fit='crop'"):
        tokenizer.encode(data.coffee()[:150, :190])
    assert len(tokenizer.encode(IMAGES, fit="squash")) == 2
    assert isinstance(lactok.load("autoencoder-mini", device="cpu").encode(array), Latents)


def test_load_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="llamagen-mini has no option 'weight'; it has weights"):
        lactok.load("llamagen-mini", weight="x")
    with pytest.raises(Exception, match="did you mean 'llamagen-mini'"):
        lactok.load("llamagen-mni")
    with pytest.raises(ValueError, match="form='jpeg'"):
        lactok.load("llamagen-mini", device="cpu").decode(torch.zeros(1, 64, dtype=torch.int64), form="jpeg")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        _ = lactok.laod
    with pytest.raises(AttributeError, match="has no attribute 'evaluat'"):
        _ = evals.evaluat


def test_the_page_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    assert len(blocks[-1].strip().splitlines()) <= 12, "a loop of ten lines, and the heads of two"
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert (tmp_path / "my-run" / "report.md").is_file()
    assert list(names["scores"]) == [0, 20, 40]
    assert names["scores"][40] > names["scores"][0] + 1, "it learns"
    assert names["model"].training


def test_the_notebook_runs() -> None:
    """Its cells in order; the value of a cell's last expression is what a notebook would show."""
    book = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    assert book["nbformat"] == 4
    names: dict[str, Any] = {"__name__": "notebook"}
    shown = []
    for cell in book["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop()
        assert isinstance(last, ast.Expr), "each cell shows something"
        exec(compile(tree, "docs/quickstart.ipynb", "exec"), names)
        shown.append(eval(compile(ast.Expression(last.value), "docs/quickstart.ipynb", "eval"), names))
    assert "llamagen-mini: 64 x 1024" in repr(shown[0])
    assert tuple(shown[1][0]) == (3, 64)
    assert shown[2].size == (256, 256)
    assert "| titok-mini |" in shown[3]._repr_markdown_()
    assert shown[4].loc["PSNR", "mean"] > 0
    assert list(shown[5].table.index) == ["Grey", "llamagen-mini"]
    assert isinstance(names["Grey"].info, TokenizerInfo)


def test_a_folder_of_a_named_data_set_is_read_as_that(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="mjhq"):
        evals.evaluate([Toy], str(tmp_path), ["psnr"], dataset="mjhq-5k", progress=False)


def test_short_names_are_compared_as_on_the_command_line() -> None:
    results = evals.evaluate(["llamagen-mini", "titok-mini"], IMAGES, ["psnr"], progress=False)
    short, full = results.compare("llamagen", "titok"), results.compare("llamagen-mini", "titok-mini")
    assert short.loc["PSNR", "count"] == len(IMAGES)
    assert short.equals(full)


def test_nothing_is_compared_where_no_metric_is_of_single_images() -> None:
    results = evals.evaluate(["downsample-bits", "mean-colour"], IMAGES, ["codes"], dataset=None, progress=False)
    test = results.compare("downsample-bits", "mean-colour")
    assert (len(test), list(test)[:3]) == (0, ["mean", "low", "high"])
