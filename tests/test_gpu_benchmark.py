"""benchmarks/gpu.py: runs whole in miniature, keeps what it found whatever ends it, says what it could not measure."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import coding, correctness, judge_rates, metric_rates
from benchmarks.gpu_session import Job, Record, RunRecord, Session, TimeIsUp, time_box
from benchmarks.measuring import Settings
from tests.support import ROOT

CPU = torch.device("cpu")
QUICK = Settings(CPU, "fp32", compile=False, quick=True, seconds=0.0)
SCRIPT = ROOT / "benchmarks" / "gpu.py"


@dataclasses.dataclass(frozen=True)
class Figure:
    value: float

    def __str__(self) -> str:
        return f"figure {self.value}"


def figures(*values: float, then: BaseException | None = None) -> Iterator[Figure]:
    for value in values:
        yield Figure(value)
    if then is not None:
        raise then


@pytest.fixture
def session(tmp_path: Path) -> Session:
    record = Record(tmp_path, RunRecord("now", 1.0, True, "a CPU"))
    return Session(QUICK, record, lambda line: None)


def runs(folder: Path) -> list[dict]:
    return json.loads((folder / "gpu.json").read_text())["runs"]


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--quick", "--out", str(out), *more]


SURROUNDINGS = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_all_of_it_in_miniature(tmp_path: Path):
    done = subprocess.run(command(tmp_path), capture_output=True, text=True, env=SURROUNDINGS)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = runs(tmp_path)
    assert run["complete"]
    assert [part["name"] for part in run["parts"]] == [part.name for part in gpu.PARTS]
    assert {part["status"] for part in run["parts"]} == {"ok"}
    found = {part["name"]: part["results"] for part in run["parts"]}
    (fp32, _) = [row for row in found["card"] if row["kind"] == "MatrixRate"]
    decoded = [row for row in found["coding"] if row["kind"] == "Coded"]
    assert {row["tokenizer"] for row in decoded} == {*coding.LACTOK, *coding.OTHERS}
    ways = {(row["compiled"], row["layout"], row["weights"]) for row in decoded if row["tokenizer"] == "lactok-h"}
    assert ways == {
        (False, "contiguous", "float32"),
        (True, "contiguous", "float32"),
        (False, "contiguous", "bfloat16"),
        (False, "channels-last", "float32"),
    }
    for row in decoded:
        assert row["flops_per_second"] == pytest.approx(row["flops"] * row["images_per_second"])
    shares = {row["share"] * row["flops_per_second"] ** -1 for row in decoded}
    assert max(shares) == pytest.approx(min(shares))  # all of one rate
    assert fp32["best"] > 0
    kernels = [row for row in found["coding"] if row["kind"] == "Kernel"]
    assert [row["place"] for row in kernels] == list(range(1, coding.KERNELS + 1))
    assert 0 < sum(row["share"] for row in kernels) <= 1 + 1e-9
    assert [row["metric"] for row in found["metrics"] if row["kind"] == "MetricRate"] == list(metric_rates.PROBES)
    assert [row["judge"] for row in found["judges"]] == list(judge_rates.JUDGES)
    assert [row["dtype"] for row in found["judges"]] == ["float32", "float32", "float32", "float16"]
    of_all = next(row for row in found["metrics"] if row["kind"] == "MetricsShare")
    assert of_all["metrics"] == ["psnr", "ssim", "lpips-alex", "inception", "colour"]
    assert of_all["share"] == pytest.approx(of_all["seconds"] / of_all["decode_seconds"])
    for row in found["table1"]:
        assert {"wait for images", "encode", "decode", "write", "rest", "inception"} <= row["seconds"].keys()
        assert row["load"] > 0
    assert [row["stage"] for row in found["training"]] == ["diffusion", "hypersd"]
    tests = [row for row in found["correctness"] if row["kind"] == "Test"]
    if not torch.cuda.is_available():
        assert {(row["outcome"], row["message"]) for row in tests} == {("skipped", "needs a CUDA device")}
    for name in ("card: ok", "lactok-h decode, compiled", "kernel 10 of", "% of a compiled lactok-h decode", "step of"):
        assert name in done.stdout


def test_a_kill_leaves_what_was_found(tmp_path: Path):
    """Killed as soon as the second part is seen; the file loads at every moment and holds the first one whole."""
    process = subprocess.Popen(
        command(tmp_path, "--only", "card", "metrics", "table1"), stdout=subprocess.DEVNULL, env=SURROUNDINGS
    )
    parts, until = [], time.monotonic() + 120
    while len(parts) < 2 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
        parts = runs(tmp_path)[0]["parts"] if (tmp_path / "gpu.json").exists() else []
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (run,) = runs(tmp_path)
    first, second = run["parts"]
    assert (first["name"], first["status"]) == ("card", "ok")
    assert {row["kind"] for row in first["results"]} == {"Card", "MatrixRate", "Bandwidth"}
    assert (second["name"], second["status"]) == ("metrics", "running")
    assert not run["complete"]


def test_a_later_run_is_added(tmp_path: Path, session: Session):
    session.run_part("one", lambda s: s.each([Job("x", lambda: figures(1.0))]), 10)
    later = Session(QUICK, Record(tmp_path, RunRecord("later", 1.0, True, "a CPU")), lambda line: None)
    later.run_part("one", lambda s: s.each([Job("x", lambda: figures(2.0, float("nan")))]), 10)
    values = [[row["value"] for row in run["parts"][0]["results"]] for run in runs(tmp_path)]
    assert values == [[1.0], [2.0, "nan"]]


def test_what_fails_is_named_and_the_rest_goes_on(tmp_path: Path, session: Session):
    jobs = [
        Job("first", lambda: figures(1.0, then=torch.OutOfMemoryError("no memory is left\nmore of it"))),
        Job("second", lambda: figures(2.0)),
    ]
    session.run_part("some", lambda s: s.each(jobs), 10)
    session.run_part("none", lambda s: s.each([Job("x", lambda: figures(then=ValueError("bad")))]), 10)
    session.run_part("broken", lambda s: figures(then=ImportError("no module")).__next__(), 10)
    some, none, broken = runs(tmp_path)[0]["parts"]
    assert [row["value"] for row in some["results"]] == [1.0, 2.0]
    assert some["lacking"] == [{"what": "first", "reason": "OutOfMemoryError: no memory is left"}]
    assert (some["status"], none["status"], broken["status"]) == ("partly", "failed", "failed")
    assert broken["reason"] == "ImportError: no module"


def test_a_time_box_ends_a_part_and_names_what_it_left(tmp_path: Path, session: Session):
    def slow() -> Iterator[Figure]:
        yield Figure(1.0)
        try:
            time.sleep(30)
        except Exception:  # as the engine does with whatever a tokenizer raises
            yield Figure(2.0)

    started = time.monotonic()
    jobs = [Job("slow", slow), Job("later", lambda: figures(3.0))]
    session.run_part("boxed", lambda s: s.each(jobs), 0.3)
    assert time.monotonic() - started < 5
    (part,) = runs(tmp_path)[0]["parts"]
    assert [row["value"] for row in part["results"]] == [1.0]
    assert [lack["what"] for lack in part["lacking"]] == ["slow", "later"]
    assert part["status"] == "partly"
    assert "time box" in part["reason"]


def test_a_time_box_that_is_left_in_time_rings_no_more():
    with time_box(0.05):
        pass
    time.sleep(0.1)
    with pytest.raises(TimeIsUp), time_box(0.05):
        time.sleep(5)


def test_what_a_part_leaves_goes_to_the_later_ones(tmp_path: Path, session: Session, monkeypatch: pytest.MonkeyPatch):
    parts = [gpu.Part(name, weight, "none", "") for name, weight in (("a", 1.0), ("b", 3.0))]
    monkeypatch.setattr(gpu.Part, "measure", lambda part, session: None)
    assert gpu.run(session, parts, 100)
    boxes = [part["box"] for part in runs(tmp_path)[0]["parts"]]
    assert boxes == pytest.approx([25, 100], abs=1)


def test_a_check_that_fails_is_no_success(tmp_path: Path, session: Session, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "test_wrong.py"
    file.write_text(f"import pytest\n\n@{correctness.MARK}\ndef test_sum():\n    assert 1 + 1 == 3\n")
    monkeypatch.setattr(correctness, "targets", lambda folder: [])
    monkeypatch.setattr(correctness, "files", lambda quick: [file])
    monkeypatch.setattr(correctness, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["gpu: x"]\n')
    session.run_part("correctness", correctness.measure, 60)
    (part,) = runs(tmp_path)[0]["parts"]
    assert [(row["name"], row["outcome"]) for row in part["results"]] == [("test_wrong.test_sum", "failed")]
    assert "1 of 1 tests failed: test_wrong.test_sum" in part["lacking"][0]["reason"]
    assert part["status"] == "partly"


def test_every_file_of_tests_marked_gpu_is_run():
    marked = {path.name for path in (ROOT / "tests").glob("test_*.py") if correctness.MARK in path.read_text()}
    marked.remove("test_conformance_device.py")  # golden cases, which the part runs itself
    assert {path.name for path in correctness.files(quick=False)} == marked
    assert {"test_cuda.py", "test_metrics_networks.py"} <= marked


def test_without_a_gpu_it_says_what_it_would_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--minutes", "5", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "a CUDA device is missing" in error
    for part in gpu.PARTS:
        assert part.about in error
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        gpu.main(["--quick", "--only", "nonesuch"])


def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "gpu.json").write_text("[]")
    assert gpu.main(["--quick", "--only", "card", "--out", str(tmp_path)]) == 2
    assert "is no file of this script" in capsys.readouterr().err
    assert (tmp_path / "gpu.json").read_text() == "[]"


def test_a_decode_is_timed_again_with_its_weights_held_in_bfloat16(session: Session):
    """Tokens to decode are made in the run's precision: weights that are held in it take no other."""
    halves = Session(dataclasses.replace(QUICK, precision="bf16"), session.record, session.out)
    for _ in range(2):  # the second finds the FLOPs counted, before which the weights were float32
        built = coding.Built(halves, "llamagen")
        assert coding.timed(halves, built, "decode", 1).weights == coding.HELD
