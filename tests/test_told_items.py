"""A tokenizer that asks for file names and metadata is given them, its keys hold them, and no other's do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import evals
import lactok
from evals.cli import selftest
from evals.config import ConfigError, compose_config
from evals.datasets.base import DatasetError
from evals.engine import run as engine
from lactok.items import Item
from tests.plugin_runs import rows, run
from tests.support import ROOT, TOY, pictures
from tests.test_targets import _process_as_before as _process_as_before

PAGE = (ROOT / "docs" / "adding-a-tokenizer.md").read_text()
GRID, CAPTIONED = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
# Asks in `decode`: the label is a grey level.
LABELLED = (
    TOY
    + """

class Labelled(Toy):
    def decode(self, encoded, seeds, items):
        given = [float(item.metadata["label"]) for item in items]
        for item in items:
            item.metadata.clear()  # a copy of its own
        return torch.tensor(given).view(-1, 1, 1, 1).expand(-1, 3, 64, 64)
"""
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with both tokenizers, three photographs and what is known of them."""
    (tmp_path / "average_tokenizer.py").write_text(f"{GRID}\n\n{CAPTIONED}")
    (tmp_path / "labelled.py").write_text(LABELLED)
    pictures(tmp_path / "images", 3)
    known(tmp_path, "bright one", "plain", "plain")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def known(folder: Path, *captions: str, names: str = "file") -> Path:
    """A metadata.csv of the photographs, whose labels are grey levels."""
    lines = [f'"picture {i:02}.png",{caption},0.{i}5' for i, caption in enumerate(captions)]
    (folder / "metadata.csv").write_text("\n".join([f"{names},caption,label", *lines]) + "\n")
    return folder / "metadata.csv"


def measured(folder: Path, *more: str) -> engine.Finished:
    tokenizers = "tokenizers=[./average_tokenizer.py:CaptionedTokenizer,./average_tokenizer.py:AverageTokenizer]"
    given = ["metrics=[psnr]", "protocol.eval_size=64", *more]
    if not any(word.startswith("tokenizers=") for word in more):
        given.append(tokenizers)
    return run(folder / "images", folder / "out", *given)


def keys(finished: engine.Finished, label: str) -> Any:
    return rows(finished)[label].keys


def psnr(finished: engine.Finished, label: str) -> list[float]:
    return [float(value) for value in finished.per_image[label].values["PSNR"][0]]


def test_the_tokenizer_of_the_docs_is_told_captions_and_no_other_is_touched(here: Path) -> None:
    without = measured(here)
    told = measured(here, "dataset.metadata=metadata.csv")
    asks, other = "CaptionedTokenizer", "AverageTokenizer"
    assert keys(told, other) == keys(without, other)
    assert psnr(told, other) == psnr(without, other) == psnr(without, asks)
    assert told.record.dataset_fingerprint == without.record.dataset_fingerprint
    assert psnr(told, asks)[0] < psnr(told, other)[0] - 1, "the bright one is made brighter"
    assert psnr(told, asks)[1:] == psnr(told, other)[1:]
    assert "given the images' names, without metadata, beside the images: CaptionedTokenizer" in without.record.notes
    assert "given the images' names and caption, label, beside the images: CaptionedTokenizer" in told.record.notes
    assert told.record.config_hash != without.record.config_hash


def test_another_caption_is_measured_anew_and_the_same_one_is_not(here: Path) -> None:
    first = measured(here, "dataset.metadata=metadata.csv")
    assert keys(measured(here, "dataset.metadata=metadata.csv"), "CaptionedTokenizer") == keys(
        first, "CaptionedTokenizer"
    )
    known(here, "plain", "plain", "a bright cup", names="file_name")
    second = measured(here, "dataset.metadata=metadata.csv")
    ours, theirs = (keys(one, "CaptionedTokenizer") for one in (first, second))
    assert set(ours) == set(theirs)
    assert all(ours[kind] != theirs[kind] for kind in ours)
    assert psnr(second, "CaptionedTokenizer")[0] > psnr(first, "CaptionedTokenizer")[0] + 1
    assert keys(first, "AverageTokenizer") == keys(second, "AverageTokenizer")


def test_a_decoder_that_asks_is_told_and_its_tokens_keep_their_key(here: Path) -> None:
    given = ["tokenizers=[./labelled.py:Labelled,./labelled.py:Toy]", "dataset.metadata=metadata.csv", "round_trips=2"]
    finished = measured(here, *given)
    row = rows(finished)["Labelled"]
    assert row.status == "ok", row.error
    assert len(set(psnr(finished, "Labelled"))) == 3
    labelled, toy = (next(r for r in finished.job.runs if r.row.label == n) for n in ("Labelled", "Toy"))
    chunk, task = finished.job.chunks[0], finished.job.task
    images = task.images(labelled, chunk, 0)
    assert "items" in images.params
    assert "items" not in task.tokens(labelled, chunk).params  # type: ignore[union-attr]  # it has tokens
    assert "items" not in task.images(toy, chunk, 0).params


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,caption\na,b\n", "has the columns name, caption: expected file"),
        ("file,caption\nother.png,b\n", "has no line for 3 of 3 items, the first: 'picture 00.png'"),
        ("file,caption\npicture 00.png\n", "entry 2 has not 2 fields"),
        ("file,caption\na.png,x,y\n", "entry 2 has not 2 fields"),
        ("file,caption\na.png,x\na.png,y\n", "has two lines for 'a.png'"),
        ("", r"has the columns \(none\)"),
        (None, "can't be read"),
    ],
)
def test_a_table_that_can_not_be_used_is_told(here: Path, text: str | None, said: str) -> None:
    path = here / "metadata.csv"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DatasetError, match=said):
        measured(here, "dataset.metadata=metadata.csv")


def test_an_empty_name_of_a_table_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dataset.metadata= is empty"):
        compose_config(["dataset.metadata="])


def test_selftest_gives_a_name_and_no_metadata(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(["./average_tokenizer.py:CaptionedTokenizer", "device=cpu", "seconds=0"]) == 0
    capsys.readouterr()
    assert selftest.main(["./labelled.py:Labelled", "device=cpu", "seconds=0"]) == 1
    assert "KeyError: 'label'" in capsys.readouterr().out


def test_from_python(here: Path) -> None:
    tokenizer = lactok.load("./average_tokenizer.py:CaptionedTokenizer", device="cpu")
    images = [lactok_image(here, i) for i in range(2)]
    told = tokenizer.encode(
        images, fit="crop", items=["a bright cup.png", Item("b", "b", "", metadata={"caption": "x"})]
    )
    plain = tokenizer.encode(images, fit="crop", items=["a", "b"])
    assert not told.ids[0].equal(plain.ids[0])  # type: ignore[union-attr]  # it has ids
    assert told.ids[1].equal(plain.ids[1])  # type: ignore[union-attr]
    for items in (None, ["a"], "a.png"):
        with pytest.raises(ValueError, match="asks for the items of 2 images, given: "):
            tokenizer.encode(images, fit="crop", items=items)
    results = evals.evaluate(
        {"told": type(tokenizer.tokenizer)}, here / "images", ["psnr"], {"eval_size": 64}, metadata="metadata.csv",
        progress=False,
    )  # fmt: skip
    assert any("caption, label, beside the images: told" in note for note in results.record.notes)


def lactok_image(folder: Path, number: int) -> Any:
    from PIL import Image

    return Image.open(folder / "images" / f"picture {number:02}.png")
