"""Types: what pyproject.toml's [tool.mypy] lists has no errors, and the settings do find one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed: it comes with the extra `test`")

ROOT = Path(__file__).resolve().parent.parent
REASONED = re.compile(r"# type: ignore\[[a-z, -]+\]  ?\S.*")
FEW = 10


def mypy(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m mypy` with the project's settings; its cache is .mypy_cache, which git ignores."""
    return subprocess.run([sys.executable, "-m", "mypy", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_what_is_listed_has_no_type_errors():
    done = mypy()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"no issues found in \d{3,} source files", done.stdout), done.stdout


def test_the_settings_find_an_error_without_annotations_and_an_ignore_without_a_code(tmp_path):
    wrong, blanket = tmp_path / "wrong.py", tmp_path / "blanket.py"
    wrong.write_text("def size():\n    return len(3)\n")
    blanket.write_text("size = len(3)  # type: ignore\n")
    done = mypy("--cache-dir", str(tmp_path / "cache"), str(wrong), str(blanket))
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r'wrong\.py:2: error: .*"len".*\[arg-type\]', done.stdout), done.stdout
    assert re.search(r"blanket\.py:1: error: .*\[ignore-without-code\]", done.stdout), done.stdout


def test_ignores_are_few_and_say_why():
    files = [path for package in ("lactok", "baselines", "evals") for path in (ROOT / package).rglob("*.py")]
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines() if "type: ignore" in line]
    assert len(lines) < FEW
    assert [line for line in lines if not REASONED.search(line)] == []
