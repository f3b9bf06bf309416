"""A built wheel holds everything: it runs the main job without the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

from tests.support import ROOT


def copy_of_the_checkout(folder: Path) -> Path:
    """What a wheel is built from; building in place would leave an egg-info behind that shadows the installed one."""
    for name in ("lactok", "baselines", "evals"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_the_main_job_runs_from_a_wheel(tmp_path: Path):
    source = copy_of_the_checkout(tmp_path / "source")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    subprocess.run([*build, str(source)], check=True, capture_output=True, text=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, str(site), str(wheel)], check=True, capture_output=True, text=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    code = "import sys, evals, lactok, baselines; print([m.__file__ for m in (evals, lactok, baselines)])"
    where = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=run, capture_output=True, text=True)
    assert where.stdout.count(str(site)) == 3, f"not the wheel's packages: {where.stdout}"
    command = [sys.executable, "-m", "evals.run", "suite=recon", "tokenizers=all", "limit=4"]
    done = subprocess.run(command, cwd=elsewhere, env=run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (table,) = elsewhere.glob("results/runs/*/table.csv")
    rows = pd.read_csv(table, index_col=0)
    assert {"llamagen-mini", "identity", "resize-64", "downsample-bits", "mean-colour"} <= set(rows.index)
    assert rows.loc["llamagen-mini", "PSNR"] > rows.loc["mean-colour", "PSNR"]
