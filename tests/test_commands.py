"""What all commands share: one way to write settings, clear errors for other files, a quiet end when nobody reads."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from evals import record
from evals.cli.arguments import as_options, listed
from evals.cli.check import main as check
from evals.cli.compare import main as compare
from evals.cli.power import main as power
from evals.cli.report import main as report
from evals.config import compose_config
from evals.record import RowRecord
from tests.support import ROOT, environment
from tests.test_compare import make, three_rows


@pytest.mark.parametrize("command", [["evals.run", "--help"], ["lactok.train", "--help"], ["evals", "list", "suites"]])
def test_a_reader_that_goes_ends_a_command_quietly(command: list[str]):
    """As `| head -0`: the pipe's other end is closed before the command writes."""
    code = (
        "import os, subprocess, sys\n"
        "read, write = os.pipe()\n"
        "os.close(read)\n"
        "done = subprocess.run([sys.executable, '-m', *sys.argv[1:]], stdout=write, stderr=subprocess.PIPE)\n"
        "sys.stderr.buffer.write(done.stderr)\n"
        "sys.exit(done.returncode)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, env=environment(), capture_output=True)
    assert (done.returncode, done.stderr.decode()) == (141, "")


def test_a_broken_pipe_of_another_kind_is_no_quiet_end():
    code = "from lactok.pipes import run_command\ndef main(words): raise BrokenPipeError\nrun_command(main)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr


def test_settings_are_written_in_one_way():
    words = as_options(["RUN", "row=[a,b[x=1,y=2]]", "out=o=p", "all=true", "k=v"], ("out",), ("row",), ("all",))
    assert words == ["RUN", "--out=o=p", "--all", "k=v", "--row", "a", "b[x=1,y=2]"]
    assert as_options(["all=false", "--row", "a"], flags=("all",)) == ["--row", "a"]
    assert listed("a, b") == ["a", "b"]
    assert listed("") == []


def named(folder: Path, names: dict[str, str]) -> str:
    """The run of `three_rows` with its rows called otherwise."""
    run = Path(three_rows(folder))
    found = record.read(run / "run.json")
    rows = [
        replace(row, label=names.get(row.label, row.label), name=names.get(row.label, row.name)) for row in found.rows
    ]
    (run / "run.json").write_text(record.to_json(replace(found, rows=rows)))
    frame = pd.read_parquet(run / "per_image.parquet")
    frame.assign(row=frame["row"].replace(names)).to_parquet(run / "per_image.parquet")
    return str(run)


def test_rows_are_named_as_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = named(tmp_path / "run", {"a": "llamagen-mini", "b": "titok-mini", "c": "lactok-t-mini"})
    for words in (["row=llamagen,titok"], ["--tokenizer", "llamagen", "titok"], ["row=[llamagen-mini,titok]"]):
        assert compare([run, run, *words]) == 0
        assert capsys.readouterr().out.startswith("titok-mini less llamagen-mini, 40 images")
    assert compare([run, run, "row=lactok-l,titok"]) == 0, "another name of lactok-t"
    assert capsys.readouterr().out.startswith("titok-mini less lactok-t-mini")
    assert power([run, "row=llamagen,titok", "metric=perc"]) == 0
    assert compare([run, "all=true"]) == 0
    assert compare([run, run, "row=gone"]) == 2
    capsys.readouterr()
    assert compare([run, run, "row=llama"]) == 2
    assert "no row 'llama'; with figures: llamagen-mini" in capsys.readouterr().err


def test_a_name_of_several_rows_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = named(tmp_path / "run", {"a": "x[n=1]", "b": "x[n=2]"})
    found = record.read(Path(run) / "run.json")
    rows = [replace(row, name="x") if row.label.startswith("x") else row for row in found.rows]
    (Path(run) / "run.json").write_text(record.to_json(replace(found, rows=rows)))
    assert compare([run, run, "row=x"]) == 2
    assert "'x' is x[n=1] or x[n=2]: name one of them" in capsys.readouterr().err


def test_the_table_of_a_folder_without_runs_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for words in (["--out", str(tmp_path / "typo")], [f"out={tmp_path / 'typo'}"]):
        assert report(["table1", *words]) == 2
        assert "typo holds no runs" in capsys.readouterr().err
        assert not (tmp_path / "typo").exists()


def test_check_says_what_to_do_with_the_record_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = "python -m evals.run tokenizers=llamagen limit=3 out=x workers=1 --quiet"
    run = make(tmp_path / "run", 0.0, command=command)
    assert check([f"{run}/run.json"]) == 2
    told = capsys.readouterr().err
    assert "is the record of a run" in told
    written = json.loads(told.split("echo '")[1].split("'")[0])
    assert written == {"config": ["tokenizers=llamagen", "limit=3"]}
    assert compose_config(written["config"]).limit == 3


def test_values_of_another_run_make_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A folder whose files are of two runs: fewer items, and a row that has no values."""
    run = Path(make(tmp_path / "run", 0.0))
    frame = pd.read_parquet(run / "per_image.parquet")
    frame.iloc[:30].to_parquet(run / "per_image.parquet")
    for command, words in ((compare, [str(run), str(run)]), (power, [str(run), "row=a", "difference=1"])):
        assert command(words) == 2
        assert "is not of this run.json: it has 30 images of the row a, the record 40" in capsys.readouterr().err
    other = make(tmp_path / "other", 0.0, rows=[RowRecord("b", "b")])
    assert compare([other, other]) == 2
    assert "it has 0 images of the row b, the record 40" in capsys.readouterr().err
