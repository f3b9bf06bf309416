"""Part 2: do the ports and the engine give on the device what they must: golden cases, and the tests marked gpu."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_session import Job, Session
from evals.cli.conformance import Target, run_target, targets
from lactok.conformance import UnhandledCase

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"
QUICK_CASES = ("seed/tiny", "ssim_psnr/tiny")
MARK = "pytest.mark.gpu"
GOLDEN_TESTS = "test_conformance_device.py"
"""Its tests marked gpu are the golden cases, which this part runs itself; --quick takes it, all being skipped."""


class Wrong(Exception):
    """A check was made and failed."""


@dataclass(frozen=True)
class GoldenCase:
    """One case. checked, failed: compared tensors, by name where they failed; worst: largest relative error."""

    case: str
    device: str
    checked: int
    failed: list[str]
    worst: float | None
    seconds: float

    def __str__(self) -> str:
        verdict = f"FAILED: {'; '.join(self.failed)}" if self.failed else "passed"
        worst = "" if self.worst is None else f", largest relative error {self.worst:.2g}"
        return (
            f"golden {self.case} on {self.device}, fp32: {self.checked} checked, {verdict}{worst}, {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class Test:
    """One test marked gpu. outcome: passed, skipped, failed; message: why it is not passed."""

    name: str
    outcome: str
    seconds: float
    message: str

    def __str__(self) -> str:
        return f"test {self.name}: {self.outcome}, {self.seconds:.1f} s" + (f": {self.message}" if self.message else "")


def measure(session: Session) -> None:
    cases = [target for target in targets(GOLDEN) if not session.quick or target.label in QUICK_CASES]
    session.each(
        [
            *(Job(f"golden {target.label}", lambda target=target: golden(target, session)) for target in cases),
            *(Job(f"tests of {file.name}", lambda file=file: marked(file)) for file in files(session.quick)),
        ]
    )


def golden(target: Target, session: Session) -> Iterator[GoldenCase]:
    started = time.monotonic()
    try:
        lines = list(run_target(target, session.device))
    except UnhandledCase:
        return
    failed = [f"{line.tensor} ({line.note})" for line in lines if not line.passed]
    errors = [line.max_rel for line in lines if line.max_rel is not None]
    seconds = time.monotonic() - started
    yield GoldenCase(target.label, session.device.type, len(lines), failed, max(errors, default=None), seconds)
    if failed:
        raise Wrong(f"{len(failed)} of {len(lines)} tensors differ")


def files(quick: bool) -> list[Path]:
    """The files that hold tests marked gpu. Others are not imported."""
    found = sorted(path for path in (ROOT / "tests").glob("test_*.py") if MARK in path.read_text())
    return [path for path in found if (path.name == GOLDEN_TESTS) is quick]


def marked(file: Path) -> Iterator[Test]:
    """In a process of its own: what it does to the device ends with it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-o", "addopts=", "-p", "no:cacheprovider",
            "--strict-markers", f"--junitxml={report}", str(file),
        ]  # fmt: skip
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
        if not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
        tests = list(outcomes(report))
        yield from tests
        if wrong := [test.name for test in tests if test.outcome == "failed"]:
            raise Wrong(f"{len(wrong)} of {len(tests)} tests failed: {', '.join(wrong)}")


def outcomes(report: Path) -> Iterator[Test]:
    """The tests in a file of pytest's --junitxml."""
    for case in ElementTree.parse(report).iter("testcase"):
        outcome, message = "passed", ""
        for kind, said in (("skipped", "skipped"), ("failure", "failed"), ("error", "failed")):
            if (found := case.find(kind)) is not None:
                outcome, message = said, " ".join((found.get("message") or found.text or "").split())[:500]
        yield Test(f"{case.get('classname')}.{case.get('name')}", outcome, float(case.get("time", 0)), message)
