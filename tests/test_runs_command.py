"""Finished runs are listed, named and merged, and their store is pruned of what none refers to."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from evals import record
from evals.cli.check import main as check
from evals.cli.compare import main as compare
from evals.cli.export import main as export
from evals.cli.judges import main as judges
from evals.cli.power import main as power
from evals.cli.report import main as report
from evals.cli.runs import main as runs
from evals.run import main as run
from tests.support import pictures, the_run
from tests.test_compare import make

FAST = ["workers=1", "metrics=[psnr,fd-effnet]", "calibration=false"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two runs on the same images."""
    folder = tmp_path_factory.mktemp("made")
    images = pictures(folder / "pictures")
    for row in ("mean-colour", "resize-64"):
        asked = ["dataset=folder", f"dataset.root={images}", f"tokenizers={row}", f"out={folder / 'out'}", *FAST]
        assert run([*asked, "--quiet"]) == 0
    return folder / "out"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def folder_of(out: Path, label: str) -> Path:
    (found,) = [path.parent for path in out.glob("runs/*/run.json") if record.read(path).rows[0].label == label]
    return found


def test_runs_are_listed_and_what_is_none_is_named(out: Path, capsys: pytest.CaptureFixture[str]):
    (out / "runs" / "foreign").mkdir()
    (out / "runs" / "foreign" / "run.json").write_text('{"suite": "recon", "rows": [], "schema": 99}')
    assert runs(["list", f"out={out}"]) == 0
    told = capsys.readouterr()
    line = r"recon-mini-\w+ +recon, mini +4 images of folder, mini-128 +\S+ +1 of 1 +[\d.]+ [kM]B"
    assert len(re.findall(line, told.out)) == 2
    assert re.search(r"2 runs in .*; store .*: [\d.]+ [kM]B", told.out)
    assert "foreign: no run that can be read" in told.err
    assert "written by a newer version" in told.err
    assert runs(["list", f"out={out / 'typo'}"]) == 2


def test_a_run_gets_a_name(out: Path, capsys: pytest.CaptureFixture[str]):
    folder = folder_of(out, "resize-64")
    assert runs(["name", str(folder), "half"]) == 0
    assert folder_of(out, "resize-64").name == "half"
    assert compare([str(out / "runs" / "half"), str(out / "runs" / "half")]) == 0
    other = str(folder_of(out, "mean-colour"))
    for words, said in (
        ([other, "half"], "exists already"),
        ([other, "../x"], "NAME is '../x': expected letters"),
        ([str(out), "y"], "holds no run.json"),
        ([other], "expected RUN and NAME"),
    ):
        assert runs(["name", *words]) == 2
        assert said in capsys.readouterr().err


def test_rows_of_two_runs_are_one_table(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The same table as one run of both rows, its figures as they were; the merged run can be compared."""
    folders = [str(folder_of(out, label)) for label in ("mean-colour", "resize-64")]
    assert runs(["merge", *folders, f"out={tmp_path / 'both'}"]) == 0
    both = record.read(tmp_path / "both" / "run.json")
    assert [row.label for row in both.rows] == ["resize-64", "mean-colour"], "as calibration rows stand in a table"
    alone = [record.read(Path(folder) / "run.json").rows[0].cells for folder in folders]
    assert [row.cells for row in both.rows] == alone[::-1]
    table = pd.read_csv(tmp_path / "both" / "table.csv", index_col=0)
    assert table.loc["resize-64", "PSNR"] == alone[1]["PSNR"].value
    assert (tmp_path / "both" / "report.md").is_file()
    assert compare([str(tmp_path / "both"), "all=true"]) == 0
    assert export([str(tmp_path / "both"), f"out={tmp_path / 'files'}"]) == 2
    assert "is merged from other runs" in capsys.readouterr().err
    assert runs(["merge", str(tmp_path / "both"), folders[0], f"out={tmp_path / 'again'}"]) == 0, "the same row once"
    assert len(record.read(tmp_path / "again" / "run.json").rows) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol_hash": "q", "protocol": {"fit": "crop"}}, "fit: squash and crop"),
        ({"dataset_fingerprint": "g"}, "the images differ"),
        ({"parameters": {"round_trips": 2}, "scale": "paper"}, "scale: mini and paper; parameters: {} and"),
        ({"config": {"seed": 1}}, "seed: 0 and 1"),
        ({"sha": "b" * 64}, "both have a row a, with other figures"),
    ],
)
def test_runs_that_do_not_fit_are_not_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, said: str
):
    a, b = make(tmp_path / "a", 0.0), make(tmp_path / "b", 0.0, **changes)
    assert runs(["merge", a, b, f"out={tmp_path / 'both'}"]) == 2
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_other_clusters_are_not_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a, b = make(tmp_path / "a", 0.0), make(tmp_path / "b", 0.0)
    path = tmp_path / "b" / "per_image.parquet"
    pd.read_parquet(path).assign(cluster="one").to_parquet(path)
    assert runs(["merge", a, b, f"out={tmp_path / 'both'}"]) == 2
    assert "clusters: intervals resample other groups" in capsys.readouterr().err


def entries(out: Path) -> set[Path]:
    return {path.parent for path in (out / "cache").glob("*/*/meta.json")}


def test_pruning_removes_what_no_run_refers_to_and_nothing_else(out: Path, capsys: pytest.CaptureFixture[str]):
    before = entries(out)
    assert runs(["prune", f"out={out}", "days=0", "yes=true"]) == 0
    assert entries(out) == before, "two runs refer to all of it"
    shutil.rmtree(folder_of(out, "resize-64"))
    assert runs(["prune", f"out={out}", "days=0"]) == 0
    assert "dry run: " in capsys.readouterr().out
    assert runs(["prune", f"out={out}", "yes=true"]) == 0
    assert entries(out) == before, "work of the last day stays"
    capsys.readouterr()
    assert runs(["prune", f"out={out}", "days=0", "yes=true"]) == 0
    assert "scores: 2 entries" in capsys.readouterr().out
    assert entries(out) < before
    folder = the_run(out)
    words = record.read(folder / "run.json")
    kept = {path: path.stat().st_mtime_ns for path in entries(out)}
    again = ["dataset=folder", f"dataset.root={words.config['dataset']['root']}", "tokenizers=mean-colour"]
    assert run([*again, f"out={out}", *FAST, "--quiet"]) == 0
    assert {path: path.stat().st_mtime_ns for path in entries(out)} == kept, "nothing had to be done again"


def test_nothing_is_pruned_where_a_run_can_not_be_told(out: Path, capsys: pytest.CaptureFixture[str]):
    folder = folder_of(out, "resize-64")
    found = record.read(folder / "run.json")
    (row,) = found.rows
    changed = replace(found, rows=[replace(row, keys={name: ["0" * 32] for name in row.keys})])
    (folder / "run.json").write_text(record.to_json(changed))
    (out / "runs" / "foreign").mkdir()
    before = entries(out)
    assert runs(["prune", f"out={out}", "days=0", "yes=true"]) == 2
    told = capsys.readouterr().err
    assert "it can't be told what 2 run(s) refer to" in told
    assert f"{folder.name}: resize-64: the model, code or device changed since" in told
    assert "foreign: " in told
    assert entries(out) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lst"], "unknown command 'runs lst': did you mean 'runs list'"),
        (["list", "yes=true"], "runs list takes no yes=: expected out"),
        (["merge", "a", "out=b"], "expected two runs or more"),
        (["prune", "days=-1"], "holds no runs"),
    ],
)
def test_a_command_that_can_not_be_used_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
):
    monkeypatch.chdir(tmp_path)
    assert runs(words) == 2
    assert said in capsys.readouterr().err


def test_the_page_of_a_run_is_written_again(out: Path, capsys: pytest.CaptureFixture[str]):
    folder = folder_of(out, "resize-64")
    page = folder / "report.html"
    before = page.read_text()
    page.unlink()
    assert report([str(folder)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_text() == before
    shutil.rmtree(out / "cache")
    assert report([str(folder)]) == 2
    assert "the store" in capsys.readouterr().err


def test_the_page_of_other_files_is_none(out: Path, capsys: pytest.CaptureFixture[str]):
    folder = folder_of(out, "mean-colour")
    frame = pd.read_parquet(folder / "per_image.parquet")
    frame.assign(item=frame["item"].to_numpy()[::-1]).to_parquet(folder / "per_image.parquet")
    for wrong, said in ((folder, "has other items of mean-colour"), (out / "runs" / "typo", "holds no run.json")):
        assert report([str(wrong)]) == 2
        assert said in capsys.readouterr().err
    assert report(["tabel1"]) == 2
    assert "tabel1" in capsys.readouterr().err


def _twice(text: str, what: str) -> str:
    record = json.loads(text)
    record[what].append(record[what][0])
    return json.dumps(record)


BROKEN = {
    "cut short": ("is no JSON", lambda text: text[: len(text) // 2]),
    "future": ("has schema 99, written by a newer version", lambda text: text.replace('"schema": 2', '"schema": 99')),
    "foreign": ("is no run's record", lambda text: '{"a": [1]}'),
    "a list": ("is no run's record", lambda text: "[1, 2]"),
    "nulls": ("is no run's record", lambda text: '{"suite": null, "rows": null, "schema": null}'),
    "damaged": ("is damaged: rows", lambda text: text.replace('"label"', '"lable"')),
    "a row twice": ("is damaged: rows: ", lambda text: _twice(text, "rows")),
    "gone": ("holds no run.json", None),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_each_command_names_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str):
    """A clear error and never a table, of every command that reads a run's folder."""
    message, change = BROKEN[kind]
    folder = Path(make(tmp_path / "run", 0.0))
    text = (folder / "run.json").read_text()
    (folder / "run.json").unlink()
    if change is not None:
        assert change(text) != text
        (folder / "run.json").write_text(change(text))
    out = tmp_path / "out"
    for command, words in (
        (compare, [folder, folder]),
        (compare, [folder, "all=true", f"out={out}"]),
        (power, [folder, "row=a", "difference=1"]),
        (export, [folder, f"out={out}"]),
        (export, [folder, f"out={out}", "format=every-eval-ever", "organization=A"]),
        (export, [folder, f"out={out}", "format=eval-results", "benchmark=a/b"]),
        (runs, ["merge", folder, folder, f"out={out}"]),
        (runs, ["name", folder, "name"]),
        (report, [folder]),
        (judges, ["failures", folder]),
    ):
        assert command([str(word) for word in words]) == 2, (command.__module__, words)
        told = capsys.readouterr()
        assert told.err.startswith("error: "), told.err
        assert message in told.err
        assert told.out == ""
        assert not out.exists()


@pytest.mark.parametrize("content", [b"PAR1", None])
def test_values_that_can_not_be_read_make_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], content):
    folder = Path(make(tmp_path / "run", 0.0))
    (folder / "per_image.parquet").unlink()
    if content is not None:
        (folder / "per_image.parquet").write_bytes(content)
    for command, words in ((compare, [folder, folder]), (power, [folder, "row=a", "difference=1"]), (report, [folder])):
        assert command([str(word) for word in words]) == 2
        told = capsys.readouterr()
        assert "per_image.parquet" in told.err
        assert told.out == ""
    (tmp_path / "x.json").write_bytes(b"\xff")
    for wrong in (folder, folder / "run.json", folder / "gone.json", tmp_path / "x.json"):
        assert check([str(wrong)]) == 2
        assert str(wrong) in capsys.readouterr().err
