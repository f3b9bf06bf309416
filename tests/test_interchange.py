"""A run's figures in formats that others collect: each is read by the rules of those who collect it."""

import json
import math
import re
from pathlib import Path

import pytest
from huggingface_hub import parse_eval_result_entries
from omegaconf import OmegaConf

from evals import record
from evals.cli.export import main as export
from evals.record import RunRecord, WeightsRecord
from evals.report.interchange import EVERY_EVAL_EVER
from tests.test_report import make_run

EEE = ["format=every-eval-ever", "organization=A lab"]
HUB = ["format=eval-results", "benchmark=a-lab/tiles"]
PATH = re.compile(r"data/lactok/[^/]+/[^/]+/[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\.json")


def folder_of(tmp_path: Path, **changes) -> str:
    run = make_run(**{"started": "2026-11-27T10:00:00+00:00", "complete": True} | changes)
    run.rows[3].weights = [WeightsRecord("a-lab/b-model/b.safetensors@0123456789ab", "a" * 64, True)]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(record.to_json(run))
    return str(folder)


def objects(value: object) -> list[dict]:
    """Every JSON object below a value, its own one first."""
    if isinstance(value, list):
        return [found for part in value for found in objects(part)]
    return [value, *objects(list(value.values()))] if isinstance(value, dict) else []


def test_every_eval_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What its validator checks: where files lie, required fields, texts as details, bounds around finite scores."""
    run, out = folder_of(tmp_path), tmp_path / "out"
    assert export([run, f"out={out}", *EEE]) == 0
    told = capsys.readouterr()
    assert "left out: b-mini[steps=2]: entropy: neither higher nor lower is better" in told.err
    files = {str(path.relative_to(out)): json.loads(path.read_text()) for path in out.rglob("*.json")}
    assert len(files) == 2, "neither the calibration rows nor those without figures"
    assert all(PATH.fullmatch(path) for path in files)
    by_model = {found["model_info"]["id"]: (path, found) for path, found in files.items()}
    assert list(sorted(by_model)) == ["a-lab/b-model", "lactok/a-mini"]
    for model, (path, found) in by_model.items():
        assert path.startswith(f"data/lactok/{model}/")
        assert found["schema_version"] == EVERY_EVAL_EVER
        assert found["evaluation_timestamp"] == "1795773600"
        assert found["source_metadata"]["source_type"] == "evaluation_run"
        assert found["source_metadata"]["source_organization_name"] == "A lab"
        details = found["model_info"]["additional_details"]
        assert details["deployment_type"] == "self_deployed"
        assert details["model_availability"] == ("open_weights" if model == "a-lab/b-model" else "unknown")
        for one in objects(found):
            extra = [one.get("additional_details", {}), one.get("details", {})]
            assert all(isinstance(text, str) for part in extra for text in part.values())
        for result in found["evaluation_results"]:
            low, high = (float(result["metric_config"][k]) for k in ("min_score", "max_score"))
            assert low <= result["score_details"]["score"] <= high
            assert isinstance(result["metric_config"]["lower_is_better"], bool)
    results = {r["metric_config"]["metric_id"]: r for r in by_model["lactok/a-mini"][1]["evaluation_results"]}
    assert list(results) == ["PSNR", "perc-effnet", "top1-effnet", "FD-effnet"]
    psnr = results["PSNR"]["score_details"]
    assert psnr["score"] == 22.494
    assert psnr["uncertainty"]["confidence_interval"]["lower"] == pytest.approx(21.294)
    assert psnr["uncertainty"]["num_samples"] == 200
    assert results["PSNR"]["metric_config"]["lower_is_better"] is False
    assert (
        results["top1-effnet"]["metric_config"] | {"metric_unit": "proportion", "max_score": 1}
        == (results["top1-effnet"]["metric_config"])
    )
    assert "biased" in results["FD-effnet"]["score_details"]["details"]["note"]


def test_another_export_of_a_run_has_the_same_names(tmp_path: Path):
    run = folder_of(tmp_path)
    for name in ("a", "b"):
        assert export([run, f"out={tmp_path / name}", *EEE]) == 0
    a, b = ({path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.json")} for name in "ab")
    assert a == b


def test_the_hub_reads_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, out = folder_of(tmp_path), tmp_path / "out"
    assert export([run, f"out={out}", *HUB, "source=https://example.org/run", "rows=identity,a-mini"]) == 0
    assert "left out: identity: PSNR: infinite" in capsys.readouterr().err
    file = out / "a-mini" / ".eval_results" / "lactok.yaml"
    plain = OmegaConf.to_container(OmegaConf.create(file.read_text()))
    entries = {entry.task_id: entry for entry in parse_eval_result_entries(plain)}
    assert list(entries) == ["psnr", "perc-effnet", "top1-effnet", "fd-effnet"]
    assert entries["psnr"].value == 22.494
    assert entries["psnr"].dataset_id == "a-lab/tiles"
    assert entries["psnr"].date == "2026-11-27T10:00:00Z"
    assert entries["psnr"].source_url == "https://example.org/run"
    for said in ("higher is better", "in dB", "200 images", "95 % interval 21.294 to 23.694", "scale mini"):
        assert said in entries["psnr"].notes
    assert not any(math.isinf(entry.value) for entry in entries.values())
    assert (out / "identity" / ".eval_results" / "lactok.yaml").is_file()


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({}, ["format=csv"], "format=csv: expected every-eval-ever or eval-results"),
        ({}, ["format=every-eval-ever"], "names who evaluated: organization=NAME"),
        ({}, [*EEE, "relationship=rival"], "relationship=rival: expected one of first_party"),
        ({}, [*EEE, "benchmark=a/b"], "unknown benchmark"),
        ({}, [*EEE, "rows=zzz"], "rows=zzz: the run has no such row with figures"),
        ({}, ["format=eval-results"], "benchmark=: expected the dataset's repository"),
        ({}, [*HUB, "source=here"], "source=here: expected an address"),
        ({"complete": False}, EEE, "the run is not complete"),
        ({"started": "yesterday"}, EEE, "started is 'yesterday'"),
        ({"rows": []}, EEE, "no model under test with figures"),
    ],
)
def test_what_can_not_be_exported_writes_nothing(tmp_path: Path, capsys, changes: dict, words: list, message: str):
    if "rows" in changes:
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "run.json").write_text(record.to_json(emptied(make_run(complete=True))))
        run = str(folder)
    else:
        run = folder_of(tmp_path, **changes)
    assert export([run, f"out={tmp_path / 'out'}", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def emptied(run: RunRecord) -> RunRecord:
    run.rows = [row for row in run.rows if row.calibration is not None or row.status != "ok"]
    return run


def test_a_folder_with_files_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, out = folder_of(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert export([run, f"out={out}", *EEE]) == 2
    assert "is not empty: name a folder that does not exist yet" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_the_validator_of_every_eval_ever_takes_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    validate = pytest.importorskip(
        "every_eval_ever.validator.validate", reason="needs the package every-eval-ever, of Python 3.12 and above"
    )
    assert export([folder_of(tmp_path), f"out={tmp_path / 'out'}", *EEE]) == 0
    monkeypatch.chdir(tmp_path / "out")
    assert validate.main([str(path) for path in Path("data").rglob("*.json")]) == 0, "neither errors nor warnings"
