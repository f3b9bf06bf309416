"""Where a run's time goes, and how it compares with the way tokenizers are usually evaluated.

    python benchmarks/engine.py                                             llamagen-mini on 64 tiles
    python benchmarks/engine.py --set tokenizers=titok-mini --plot parts.png
    python benchmarks/engine.py --set scale=paper --set dataset=folder --set dataset.root=DIR --set tokenizers=llamagen
    python benchmarks/engine.py --quick                                     8 tiles: shows that it works

Both do the same work on the same pictures in this process, one after the other, models built and imports done before:

    engine    the run itself with a store of its own: pictures decoded ahead by threads, batches, all metrics of a chunk
              while it is in memory
    script    as published tokenizers' own evaluation scripts are laid out (LlamaGen's reconstruction_vq_ddp.py and its
              evaluator are one): a loop over pictures, each opened, resized, encoded and decoded alone, both written as
              PNG; PSNR and SSIM by scikit-image on the CPU; then a second pass that opens all PNGs again, one at a
              time, for the other metrics' networks

The parts of the engine are exclusive: time inside a write does not count for the metric that writes. Waiting for
pictures is what is left of decoding them once it runs beside the work.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from evals.engine.seeds import image_seed
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from evals.config import RunConfig, compose_config
from evals.engine import execute, run
from evals.engine.environment import precision
from evals.engine.execute import Job
from evals.engine.store import Cache
from evals.tasks.protocol import evaluation_image, native_images, reconstruction, to_tensor

PIXELS = ("psnr", "ssim")  # what the script computes with scikit-image


class Clock:
    """Exclusive seconds by part: a part that is entered inside another stops the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = time.perf_counter()

    def _note(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._note()
        self._open.append(name)
        try:
            yield
        finally:
            self._note()
            self._open.pop()

    def wrap(self, call: Callable, name: Callable[..., str]) -> Callable:
        def timed(*given, **more):
            with self.part(name(*given)):
                return call(*given, **more)

        return timed

    def iterate(self, call: Callable, name: str) -> Callable:
        def timed(*given):
            pictures = call(*given)
            while True:
                with self.part(name):
                    item = next(pictures, None)
                if item is None:
                    return
                yield item

        return timed


def engine(config: RunConfig, clock: Clock) -> Job:
    """The run, its parts timed. Models and metrics' networks are built before the clock starts."""
    with ExitStack() as stack:
        for owner, attribute, timed in (
            (execute, "read_chunks", clock.iterate(execute.read_chunks, "wait for pictures")),
            (execute, "_codes", clock.wrap(execute._codes, lambda *_: "encode")),
            (execute, "_decode", clock.wrap(execute._decode, lambda *_: "decode")),
            (execute, "_score", clock.wrap(execute._score, lambda job, plan, *_: plan.name)),
            (Cache, "write", clock.wrap(Cache.write, lambda *_: "write")),
        ):
            stack.enter_context(mock.patch.object(owner, attribute, timed))
        with clock.part("rest"):
            return run.run(config, quiet=True).job


def script(job: Job, folder: Path, clock: Clock) -> None:
    """The same pictures and metrics, the usual way."""
    samples = [sample for chunk in job.chunks for sample in chunk.samples]
    for work in job.rows:
        tokenizer = work.row.cls(work.row.options, job.device)
        for number, sample in enumerate(samples):
            with clock.part("wait for pictures"):
                source = job.dataset.read(sample)
                original = to_tensor([evaluation_image(source, job.protocol)]).to(job.device)
            with precision(job.precision, job.device):
                with clock.part("encode"):
                    native = native_images(original, [source], tokenizer.info.input_size, job.protocol)
                    codes = tokenizer.encode(native)
                with clock.part("decode"):
                    seed = image_seed(job.keys.conditions.seed, 0, sample.content)
                    back = reconstruction(tokenizer.decode(codes, [seed]), job.protocol)
            pair = [t[0].permute(1, 2, 0).cpu().numpy() for t in (original, back)]
            with clock.part("write"):
                for name, picture in zip(("original", "back"), pair, strict=True):
                    Image.fromarray(picture).save(folder / f"{number:05}-{name}.png")
            if "psnr" in job.built_probes:
                with clock.part("psnr"):
                    peak_signal_noise_ratio(*pair, data_range=255)
            if "ssim" in job.built_probes:
                with clock.part("ssim"):
                    structural_similarity(*pair, channel_axis=2, data_range=255)
        for name, probe in job.built_probes.items():
            if name not in PIXELS:
                _second_pass(len(samples), folder, name, probe, job, clock)


def _second_pass(count: int, folder: Path, name: str, probe: object, job: Job, clock: Clock) -> None:
    plan = next(plan for plan in job.probes if plan.name == name)
    with clock.part(name), precision("fp32", job.device):
        for number in range(count):
            files = (folder / f"{number:05}-{kind}.png" for kind in ("original", "back"))
            pair = [to_tensor([np.asarray(Image.open(file))]).to(job.device) for file in files]
            views = [probe.view(picture) for picture in pair]
            probe.compare(*views)
            if plan.has_features:
                for view in views:
                    probe.features(view)


def compare(settings: list[str]) -> tuple[Clock, Clock, int, Job]:
    """Both ways of one run's work: their clocks, the number of pictures, and the job."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        warm = compose_config([*settings, "limit=2", f"out='{where / 'warm'}'"])
        run.run(warm, quiet=True)  # imports, kernels, files in the page cache
        first, second = Clock(), Clock()
        job = engine(compose_config([*settings, f"out='{where / 'out'}'"]), first)
        pictures = where / "pictures"
        pictures.mkdir()
        script(job, pictures, second)
    return first, second, len(job.dataset.samples) * len(job.rows), job


def show(console: Console, clocks: dict[str, Clock], count: int) -> None:
    table = Table("part", *(f"{name}, ms a picture" for name in clocks))
    for column in table.columns[1:]:
        column.justify = "right"
    for part in dict.fromkeys(part for clock in clocks.values() for part in clock.seconds):
        table.add_row(part, *(f"{1e3 * clock.seconds.get(part, 0) / count:.1f}" for clock in clocks.values()))
    totals = {name: sum(clock.seconds.values()) for name, clock in clocks.items()}
    table.add_section()
    table.add_row("all", *(f"{1e3 * total / count:.1f}" for total in totals.values()))
    table.add_row("pictures/s", *(f"{count / total:.2f}" for total in totals.values()))
    console.print(table)
    console.print(f"engine / script: {totals['script'] / totals['engine']:.2f} times as many pictures a second")


def plot(clocks: dict[str, Clock], count: int, target: Path) -> None:
    """A stacked bar for each way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    left = dict.fromkeys(clocks, 0.0)
    for part in dict.fromkeys(part for clock in clocks.values() for part in clock.seconds):
        widths = {name: 1e3 * clock.seconds.get(part, 0) / count for name, clock in clocks.items()}
        axes.barh(list(widths), list(widths.values()), left=list(left.values()), label=part)
        left = {name: left[name] + width for name, width in widths.items()}
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a picture")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(target, dpi=120)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of python -m evals.run")
    parser.add_argument("--pictures", type=int, default=64, help="[64]")
    parser.add_argument("--quick", action="store_true", help="8 pictures")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the parts as stacked bars")
    args = parser.parse_args(argv)
    count = 8 if args.quick else args.pictures
    defaults = ["tokenizers=llamagen-mini", "calibration=false", f"limit={count}"]
    first, second, done, job = compare([*defaults, *args.set])
    console = Console()
    names = ", ".join(work.row.label for work in job.rows)
    metrics = ", ".join(job.built_probes)
    console.print(
        f"{names}; {done} pictures of {job.protocol.eval_size} px; metrics {metrics}; {job.device}, "
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}",
        soft_wrap=True,
    )
    clocks = {"engine": first, "script": second}
    show(console, clocks, done)
    if args.plot:
        plot(clocks, done, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
