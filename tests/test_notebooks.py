"""Progress in a notebook: a bar below the cell, by IPython's display alone; none when nobody wants it."""

from __future__ import annotations

import builtins
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from skimage import data

import evals
from lactok import progress
from lactok.loaded import Loaded
from tests.test_python import Toy


class Output:
    """What a notebook has shown below a cell: a list of pictures for each display, each in place of the one before."""

    def __init__(self) -> None:
        self.displays: list[list[str]] = []

    def display(self, html: str, display_id: bool) -> Any:
        assert display_id, "it is to be updated"
        pictures = [html]
        self.displays.append(pictures)
        handle = ModuleType("handle")
        handle.update = pictures.append  # type: ignore[attr-defined]
        return handle

    @property
    def said(self) -> str:
        return "\n".join(picture for pictures in self.displays for picture in pictures)


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Output:
    """This process as a notebook's kernel, as far as libraries can tell."""
    shown, module, package = Output(), ModuleType("IPython.display"), ModuleType("IPython")
    module.HTML, module.display = str, shown.display  # type: ignore[attr-defined]
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(progress, "DRAW_EVERY", 0.0)
    return shown


def test_a_bar_is_drawn_in_place_and_is_gone_at_the_end(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Meter(4, "checking images") as meter:
        for _ in range(4):
            meter.advance()
    (pictures,) = output.displays
    assert len(pictures) == 6, "the start, four images and the end"
    assert "checking images" in pictures[0]
    assert "0/4" in pictures[0]
    assert "4/4" in pictures[-2]
    assert "images/s" in pictures[-2]
    assert pictures[-2].startswith("<pre ")
    assert pictures[-1] == ""
    with progress.Meter(10**8, "val2017.zip", "byte") as meter:
        meter.at(10**7)
    assert "10.0/100.0 MB" in output.displays[1][1]
    with progress.bar(Console(stderr=True), transient=False) as bar:
        bar.update(bar.add_task("left there", total=2), completed=2)
    assert "2/2" in output.displays[2][-1]
    assert capsys.readouterr() == ("", "")


def test_evaluate_shows_it_unless_told_not_to(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    images = [data.chelsea()[y : y + 64, 100:164] for y in range(0, 180, 10)]
    evals.evaluate([Toy], images, ["psnr"], progress=False)
    assert output.displays == []
    evals.evaluate([Toy], images, ["psnr"])
    assert "Toy" in output.said
    assert "2/2" in output.said, "two chunks"
    assert "checking images" in output.said
    assert all(pictures[-1] == "" for pictures in output.displays)
    assert capsys.readouterr().err == ""


def test_encode_and_decode_show_it_unless_told_not_to(output: Output) -> None:
    tokenizer = Loaded("toy", Toy(None, torch.device("cpu")))
    images = np.stack([data.coffee()[y : y + 64, 200:264] for y in range(33)])
    quiet = tokenizer.encode(images, progress=False)
    few = tokenizer.encode(images[:16])
    tokenizer.decode(quiet, progress=False)
    assert output.displays == [], "neither when told so nor for one batch"
    tokens = tokenizer.encode(images)
    assert tokens.ids.equal(quiet.ids)  # type: ignore[union-attr]  # it has ids
    assert tokens.ids[:16].equal(few.ids)  # type: ignore[union-attr]
    decoded = tokenizer.decode(tokens)
    assert decoded.shape == (33, 3, 64, 64)  # type: ignore[union-attr]  # a tensor
    encoding, decoding = ("\n".join(pictures) for pictures in output.displays)
    assert all(f"{done}/33" in encoding for done in (16, 32, 33))
    assert "toy: encoding" in encoding
    assert "toy: decoding" in decoding
    with pytest.raises(ValueError, match="no image"):
        tokenizer.encode([])
    with progress.silent():
        assert tokenizer.encode(images).ids.equal(quiet.ids)  # type: ignore[union-attr]
    assert len(output.displays) == 2
