"""Does a run's memory grow with the number of images? Peak resident memory, time and disk of `identity` at 1024 px.

    python benchmarks/memory.py                       100 and 400 images: minutes on two cores
    python benchmarks/memory.py --images 8,16 --side 256      seconds: shows that it works

Each run is a process of its own with a cache of its own, on the CPU. Images are synthetic: smooth noise of the
given side, PNG, a seed each. Metrics: all whose networks are on this machine (named in the output). Exits 1 when the
largest run's peak is more than 5 % above the smallest run's, or over 3 GB.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

MOST = 3e9  # bytes
GROWTH = 1.05
METRICS = "psnr,ssim,ssim-gauss11,colour,effnet,fd-effnet,rfid,kid,lpips-alex,lpips-vgg"


@dataclass(frozen=True)
class Measured:
    """One run. peak: bytes resident at most; stored: bytes of its cache."""

    images: int
    peak: int
    seconds: float
    stored: int


def synthetic(folder: Path, count: int, side: int) -> Path:
    """`count` images of `side` pixels: noise of 32 cells a side, enlarged, and a little of its own for each pixel."""
    folder.mkdir()

    def draw(number: int) -> None:
        values = np.random.default_rng(number)
        smooth = Image.fromarray(values.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((side, side), 3)
        grain = values.integers(-8, 9, (side, side, 3))
        Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)).save(
            folder / f"{number:05}.png", compress_level=1
        )

    with ThreadPoolExecutor() as threads:  # a fifth of a second each at 1024 pixels
        list(threads.map(draw, range(count)))
    return folder


def measure(folder: Path, out: Path, side: int, metrics: str, more: list[str]) -> Measured:
    """A run over the images of `folder` in a process of its own. Raises RuntimeError when it measured nothing."""
    settings = [
        "tokenizers=identity", "calibration=false", f"metrics=[{metrics}]", "dataset=folder",
        f"dataset.root='{folder}'", "protocol=paper-1024", f"protocol.eval_size={side}", f"out='{out}'", "device=cpu",
        "workers=1",
    ]  # fmt: skip
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "evals.run", *settings, *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    errors = process.stderr.read().decode()
    _, status, usage = wait(process)
    if status or not list(out.glob("runs/*/run.json")):
        raise RuntimeError(errors.strip() or f"status {status}")
    unit = 1 if sys.platform == "darwin" else 1024
    stored = sum(path.stat().st_size for path in (out / "cache").rglob("*") if path.is_file())
    count = sum(1 for _ in folder.iterdir())
    return Measured(count, usage.ru_maxrss * unit, time.monotonic() - started, stored)


def wait(process: subprocess.Popen) -> tuple[int, int, resource.struct_rusage]:
    """Process number, exit status and what it used."""
    import os

    number, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return number, process.returncode, usage


def available() -> tuple[list[str], list[str]]:
    """Metrics that can be computed here, and why the others can't."""
    from evals.metrics.plan import plan
    from evals.tasks.protocol import ReconstructionProtocol
    from evals.tasks.reconstruction import Reconstruction

    names = METRICS.split(",")
    task = Reconstruction(None, ReconstructionProtocol("paper-1024", eval_size=1024, fit="squash"))  # reads nothing
    missing = plan(names, "effnet", task).missing
    return [name for name in names if not any(line.startswith(f"{name}:") for line in missing)], missing


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="100,400", help="numbers of images [100,400]")
    parser.add_argument("--side", type=int, default=1024, help="of the images, pixels [1024]")
    parser.add_argument("more", nargs="*", help="further settings of the runs, such as batch_size=4")
    args = parser.parse_args(argv)
    metrics, missing = available()
    print(f"metrics: {', '.join(metrics)}", *(f"not measured: {line}" for line in missing), sep="\n", flush=True)
    found = []
    for count in (int(part) for part in args.images.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            data = synthetic(Path(folder) / "images", count, args.side)
            run = measure(data, Path(folder) / "out", args.side, ",".join(metrics), args.more)
        found.append(run)
        print(
            f"{run.images} images of {args.side} px: peak {run.peak / 1e9:.2f} GB, {run.seconds:.0f} s "
            f"({run.seconds / run.images:.2f} s an image), cache {run.stored / run.images / 1e3:.1f} kB an image",
            flush=True,
        )
    few, many = found[0], found[-1]
    ratio = many.peak / few.peak
    print(f"peak of {many.images} images over that of {few.images}: {ratio:.3f}; allowed {GROWTH}")
    return 1 if ratio > GROWTH or many.peak > MOST else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
