"""docs/results.md is what the committed summaries say, with a summary more or less."""

import json
import re
import shutil
from pathlib import Path

import pytest

from evals.cli.results import main, page
from evals.record import RecordError
from tests.support import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The summaries and images of this checkout, to be changed."""
    shutil.copytree(ROOT / "results" / "mini", tmp_path / "results" / "mini")
    shutil.copytree(ROOT / "results" / "gpu", tmp_path / "results" / "gpu")
    shutil.copytree(ROOT / "docs" / "images", tmp_path / "docs" / "images")
    return tmp_path


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]):
    assert main([f"root={ROOT}"]) == 0
    made = capsys.readouterr().out
    assert (ROOT / "docs" / "results.md").read_text() == made, "write it: python -m evals results > docs/results.md"
    for summary in (ROOT / "results" / "mini").glob("*.json"):
        assert f"python -m evals check results/mini/{summary.name}" in made


def test_figures_are_those_of_the_file(checkout: Path):
    path = checkout / "results" / "mini" / "recon.json"
    found = json.loads(path.read_text())
    found["rows"]["titok-mini"]["cells"] |= {"PSNR": 99.127, "top1-effnet": 0.5, "LPIPS-alex": "nan"}
    found["rows"]["flextok-mini"] = {"status": "missing", "weights": [], "cells": {}, "tokens": []}
    path.write_text(json.dumps(found))
    (checkout / "results" / "mini" / "geneval.json").unlink()
    lines = page(checkout).splitlines()
    (row,) = [line for line in lines if line.startswith("| titok-mini |")]
    (head,) = [line for line in lines if line.startswith("| row |")]
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert (cells["PSNR ↑ (dB)"], cells["top1-effnet ↑ (%)"], cells["LPIPS-alex ↓"]) == ("99.13", "50.0", "–")
    (best,) = [line for line in lines if line.startswith("- Best of")]
    assert "PSNR titok-mini (99.13); " in best
    (missing,) = [line for line in lines if "flextok-mini **missing**" in line]
    assert set(missing.split("|")[2:-1]) == {" – "}


def test_a_summary_of_generation_is_a_section_of_its_own(checkout: Path):
    """It comes and goes with its file; without an image none is shown."""
    geneval = checkout / "results" / "mini" / "geneval.json"
    geneval.unlink(missing_ok=True)
    before = page(checkout)
    assert "GenEval on rendered scenes" not in before
    row = {"status": "ok", "weights": [], "tokens": []}
    summary = {
        "config": ["suite=geneval"], "protocol_hash": "abc", "items": 24, "device": "a processor", "rows": {
            "rendered": row | {"cells": {"GenEval": 1.0}},
            "lactokgen-h-mini": row | {"cells": {"GenEval": 0.25}},
            "llamagen-t2i-mini": row | {"cells": {"GenEval": 0.125}},
            "shuffled-prompts": row | {"cells": {"GenEval": 0.125}},
        },
    }  # fmt: skip
    geneval.write_text(json.dumps(summary))
    (checkout / "docs" / "images" / "geneval-mini.jpg").unlink(missing_ok=True)
    section = page(checkout).partition("## Generation: GenEval on rendered scenes")[2].partition("\n## ")[0]
    assert "24 prompts" in section
    assert re.search(r"Best of the models under test: GenEval lactokgen-h-mini \(0?\.?25", section)
    assert "Not ahead of `shuffled-prompts`: llamagen-t2i-mini in GenEval." in section
    assert "![" not in section
    (checkout / "docs" / "images" / "geneval-mini.jpg").write_bytes(b"")
    assert "![Images of this table's rows](images/geneval-mini.jpg)" in page(checkout)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("mini/recon.json", "{", "recon.json is no file of this command"),
        ("mini/recon.json", '{"rows": 5}', "recon.json is no file of this command"),
        ("gpu/h100.json", "{}", "h100.json is no file of the GPU's measurements"),
        ("gpu/h100.json", "[", "h100.json is no file of the GPU's measurements"),
    ],
)
def test_another_file_is_no_table(checkout: Path, capsys, file: str, content: str, message: str):
    (checkout / "results" / file).write_text(content)
    assert main([f"root={checkout}"]) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.out == ""


def test_a_folder_without_summaries_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(RecordError, match="holds no summary: name the checkout by root=DIR"):
        page(tmp_path)
    assert main(["--out", "x"]) == 2
    assert "unknown --out" in capsys.readouterr().err
