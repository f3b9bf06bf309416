"""What a build of training data takes: `--plan` is what the docs show, from measured, given and assumed speeds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lactok.data.__main__ import main
from lactok.data.construct.plan import costs, speeds, told
from lactok.data.construct.spec import parse
from tests.support import ROOT

PAPER = ["recipe=paper", "captions=list.txt", "out=out"]


def test_the_plan_is_the_docs_and_its_measured_speed_is_the_results(capsys: pytest.CaptureFixture):
    known = speeds({})
    results = json.loads((ROOT / "results" / "gpu" / "h100.json").read_text())
    rates = [
        row["images_per_second"]
        for one in results["runs"]
        for part in one["parts"]
        for row in part["results"]
        if row.get("judge") == "imagereward" and row["dtype"] == "float32"
    ]
    assert known["imagereward"]["images_per_second"] == pytest.approx(rates[0], rel=1e-3)
    assert main(["build", "--plan", "recipe=paper", "items=30000000", "gpus=256"]) == 0
    said = capsys.readouterr().out
    page = (ROOT / "docs" / "data-construction.md").read_text()
    for line in (re.search(r"GPU hours: .*", said)[0], re.search(r"storage: .*", said)[0]):
        assert line in page


def test_the_plan_takes_given_speeds_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture):
    spec = parse(PAPER)
    half = costs(spec, speeds({"synthesise": "0.1"}), 36_000)
    assert half[0].gpu_hours == pytest.approx(100)
    assert "given by you" in told(spec, 36_000, 0, 4, speeds({"synthesise": "0.1"}))
    stage = {"items_in": 100, "seconds": 50.0, "device": "NVIDIA X"}
    (tmp_path / "report.json").write_text(json.dumps({"stages": {"caption": stage}}))
    assert speeds({}, str(tmp_path / "report.json"))["caption"]["images_per_second"] == 2
    assert main(["build", "--plan", "recipe=paper", "items=5", "speed.flux=1"]) == 2
    assert "speed.flux" in capsys.readouterr().err
    assert main(["build", "--plan", "recipe=mini", "items=5"]) == 2
