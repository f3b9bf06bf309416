"""Nothing is lost and nothing counts twice: kills, second runs, metrics added later, Ctrl-C, full disks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from evals.config import compose_config
from evals.engine import run as engine
from evals.metrics.image.effnet import EffnetMetric
from evals.report.markdown import write_report
from evals.run import main
from lactok import files, registry
from tests.commands import Command
from tests.support import ROOT, TOY, environment, install_plugin, pictures, the_run

COMMAND = ["tokenizers=llamagen", "limit=36"]  # three chunks, the last one in part
TABLES = ("table.csv", "table.parquet", "per_image.parquet", "contact.png")


def commits(out: Path) -> int:
    return sum(1 for _ in (out / "cache").glob("*/*/meta.json"))


def test_killed_at_any_moment_gives_the_same_table_to_the_last_digit(tmp_path: Path):
    """One store, killed at the first, a middle and the last commit and in the middle of writes, against a clean run."""
    clean, killed = tmp_path / "clean", tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "tests/killed_run.py", f"{clean},{killed}", *COMMAND],
        cwd=ROOT,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.split()[:1] in (["clean"], ["killed"])]
    counts = {name: [int(c) for c in found] for name, *found in lines}
    (total,) = counts["clean"]
    assert counts["killed"] == sorted(counts["killed"]), "a kill loses no finished work"
    assert counts["killed"][-2:] == [total - 1, total]
    for name in TABLES:
        assert (the_run(killed) / name).read_bytes() == (the_run(clean) / name).read_bytes(), name


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The toy tokenizers, in this process."""
    plugin = install_plugin(
        tmp_path / "plugin",
        "toyplugin",
        TOY + "\n\nclass Noisy(Toy):\n    noise = True\n",
        {"toy": "Toy", "noisy": "Noisy"},
    )
    monkeypatch.syspath_prepend(str(plugin))
    registry.entries.cache_clear()
    yield
    registry.entries.cache_clear()
    sys.modules.pop("toyplugin", None)


def run(tmp_path: Path, *overrides: str):
    folder = pictures(tmp_path / "pictures")
    return engine.run(
        compose_config(["dataset=folder", f"dataset.root='{folder}'", f"out='{tmp_path / 'out'}'", *overrides]),
        quiet=True,
    )


@pytest.mark.usefixtures("toy")
def test_a_second_run_does_no_model_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = run(tmp_path, "tokenizers=[toy,noisy]", "seeds=2")
    import toyplugin

    def no_work(*_: object, **__: object) -> None:
        raise AssertionError("model work in a second run")

    monkeypatch.setattr(toyplugin.Toy, "encode", no_work)
    monkeypatch.setattr(toyplugin.Toy, "decode", no_work)
    monkeypatch.setattr("evals.engine.job.Job.metric", no_work)
    second = run(tmp_path, "tokenizers=[toy,noisy]", "seeds=2")
    assert [r.status for r in second.record.rows] == ["ok"] * len(first.record.rows)
    assert [r.cells for r in second.record.rows] == [r.cells for r in first.record.rows]
    assert second.folder == first.folder


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("saved", [False, True])
def test_a_metric_added_later_never_encodes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool):
    run(tmp_path, "tokenizers=toy", "metrics=[psnr]", f"save_images={saved}")
    import toyplugin

    def again(*_: object) -> None:
        raise AssertionError("encoded or decoded again")

    decoded = []
    decode = toyplugin.Toy.decode
    monkeypatch.setattr(toyplugin.Toy, "encode", again)
    monkeypatch.setattr(toyplugin.Toy, "decode", lambda *a: decoded.append(1) or decode(*a))
    row = next(r for r in run(tmp_path, "tokenizers=toy", "metrics=[psnr,ssim]").record.rows if r.name == "toy")
    assert row.status == "ok", row.error
    assert 0 < row.cells["SSIM"].value < 1
    assert bool(decoded) != saved, "stored images are used where there are some, else stored tokens are decoded"


@pytest.mark.usefixtures("toy")
def test_references_are_embedded_once_for_all_tokenizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    embed = EffnetMetric.embed
    monkeypatch.setattr(EffnetMetric, "embed", lambda self, x, items: seen.append(len(x)) or embed(self, x, items))
    run(tmp_path, "tokenizers=toy", "calibration=false", "metrics=[effnet,fd-effnet]")
    assert sum(seen) == 4 + 4
    seen.clear()
    both = ("tokenizers=[toy,noisy]", "calibration=false", "metrics=[effnet,fd-effnet]")
    assert len(run(tmp_path, *both).record.rows) == 2
    assert sum(seen) == 4 + 4, "the tokenizer that is done costs nothing"
    seen.clear()
    run(tmp_path, *both, f"out='{tmp_path / 'another'}'")
    assert sum(seen) == 4 + 4 + 4
    stored = list((tmp_path / "out" / "cache").glob("reference-features/*"))
    assert len(stored) == 1, "one chunk of references, one entry of their features"


@pytest.mark.usefixtures("toy")
def test_a_damaged_entry_is_made_again(tmp_path: Path):
    before = run(tmp_path, "tokenizers=toy").record
    for path in (tmp_path / "out" / "cache").glob("scores/*/data.safetensors"):
        path.write_bytes(path.read_bytes()[:-3])
    after = run(tmp_path, "tokenizers=toy").record
    assert [r.cells for r in after.rows] == [r.cells for r in before.rows]


@pytest.mark.usefixtures("toy")
def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import errno

    folder = pictures(tmp_path / "pictures", 20)
    command = ["tokenizers=toy", "dataset=folder", f"dataset.root='{folder}'", f"out='{tmp_path / 'out'}'", "workers=1"]
    write = files.write_synced
    written = []

    def full(path: Path, content: bytes) -> None:
        if len(written) >= 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write(path, content)

    monkeypatch.setattr(files, "write_synced", full)
    assert main(command) == 2
    assert "disk is full" in capsys.readouterr().err
    kept = commits(tmp_path / "out")
    assert kept > 0
    monkeypatch.setattr(files, "write_synced", write)
    assert main(command) == 0
    assert commits(tmp_path / "out") > kept


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path: Path):
    slow = TOY.replace("grey =", "import time; time.sleep(0.5)\n        grey =")
    plugin = install_plugin(tmp_path / "plugin", "slowplugin", slow, {"slow": "Toy"})
    folder = pictures(tmp_path / "pictures", 40)
    command = ["tokenizers=slow", "dataset=folder", f"dataset.root={folder}", f"out={tmp_path / 'out'}", "batch_size=1"]
    command.append("workers=1")
    process = Command(["-m", "evals.run", *command], environment(plugin))
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("cache/tokens/*/meta.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    done = process.end(30)
    errors = done.stderr
    assert done.returncode == 130, errors
    assert "python -m evals.run tokenizers=slow" in errors
    assert commits(tmp_path / "out") > 0


def test_a_stale_index_is_dropped_and_the_run_goes_on_with_the_right_content(
    tmp_path: Path, toy: None, monkeypatch: pytest.MonkeyPatch
):
    """A file system whose stamps tell nothing, and an image replaced between two runs."""
    monkeypatch.setattr("evals.datasets.images.preflight.file_stamp", lambda path: (1, 2, 3, 4))
    folder = pictures(tmp_path / "pictures", 3)
    spare = pictures(tmp_path / "spare", 6) / "picture 05.png"

    def run(out: str, *more: str) -> engine.Finished:
        what = ["dataset=folder", f"dataset.root='{folder}'", "tokenizers=toy", "metrics=psnr"]
        return engine.run(compose_config([*what, f"out='{tmp_path / out}'", *more]), quiet=True)

    old = run("out")
    spare.replace(folder / "picture 01.png")
    again, clean = run("out", "protocol.rounding=truncate"), run("clean", "protocol.rounding=truncate")
    assert again.record.dataset_fingerprint == clean.record.dataset_fingerprint != old.record.dataset_fingerprint
    assert [row.cells for row in again.record.rows] == [row.cells for row in clean.record.rows]


def test_a_seed_makes_nothing_anew_of_a_deterministic_tokenizer(tmp_path: Path, toy: None):
    folder = pictures(tmp_path / "pictures", 3)
    out = tmp_path / "out"
    what = ["dataset=folder", f"dataset.root='{folder}'", "calibration=false", "metrics=psnr", f"out='{out}'"]

    def kept() -> set[str]:
        kinds = ("contact", "tokens", "timing", "scores")
        return {p.parent.name for kind in kinds for p in (tmp_path / "out" / "cache" / kind).glob("*/meta.json")}

    engine.run(compose_config([*what, "tokenizers=toy"]), quiet=True)
    before = kept()
    finished = engine.run(compose_config([*what, "tokenizers=toy", "seed=7"]), quiet=True)
    assert kept() == before
    _, ((label, shown),) = engine.contact_images(finished)
    assert (label, len(shown)) == ("toy", 3)
    engine.run(compose_config([*what, "tokenizers=noisy"]), quiet=True)
    before = kept()
    engine.run(compose_config([*what, "tokenizers=noisy", "seed=7"]), quiet=True)
    assert len(kept()) == len(before) + 3, "of a decoder with noise: contact, timing, scores"


def test_speeds_are_shown_with_the_machine_that_they_were_timed_on(
    tmp_path: Path, toy: None, monkeypatch: pytest.MonkeyPatch
):
    folder = pictures(tmp_path / "pictures", 3)
    out = tmp_path / "out"
    what = ["dataset=folder", f"dataset.root='{folder}'", "calibration=false", "metrics=psnr", f"out='{out}'"]

    def run_on(machine: str, tokenizers: str) -> tuple[pd.DataFrame, str]:
        monkeypatch.setattr("evals.engine.environment._processor", lambda: machine)
        monkeypatch.setattr("torch.get_num_threads", lambda: 2)
        finished = engine.run(compose_config([*what, f"tokenizers={tokenizers}"]), quiet=True)
        assert finished.record.device == f"{machine}, 2 threads"
        write_report(finished.record, finished.folder)
        report = (finished.folder / "report.md").read_text()
        return pd.read_csv(finished.folder / "speed.csv", index_col=0), report

    run_on("Old machine", "toy")
    speed, report = run_on("New machine", "[toy,noisy]")
    decoding = speed[speed["step"] == "decode"]
    assert dict(decoding["device"]) == {"toy": "Old machine", "noisy": "New machine"}
    assert set(speed["threads"]) == {2}
    lines = [line for line in report.splitlines() if line.startswith("| toy | fp32")]
    assert len(lines) == 2, "encoding and decoding"
    assert all("Old machine" in line for line in lines)
