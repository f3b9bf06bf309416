"""Where a run's time goes, and how it compares with the way tokenizers are usually evaluated.

    python benchmarks/engine.py                                             llamagen-mini on 64 tiles
    python benchmarks/engine.py --set tokenizers=titok-mini --plot parts.png
    python benchmarks/engine.py --set scale=paper --set dataset=folder --set dataset.root=DIR --set tokenizers=llamagen
    python benchmarks/engine.py --quick                                     8 tiles: shows that it works

Both do the same work on the same images in this process, one after the other, models built and imports done before:

    engine    the run itself with a cache of its own: images read ahead by threads, batches, all metrics of a chunk
              while it is in memory
    script    as published tokenizers' own evaluation scripts are laid out (LlamaGen's reconstruction_vq_ddp.py and its
              evaluator are one): a loop over images, each opened, resized, encoded and decoded alone, both written as
              PNG; PSNR and SSIM by scikit-image on the CPU; then a second pass that opens all PNGs again, one at a
              time, for the other metrics' networks

The parts of the engine are exclusive: time inside a write does not count for the metric that writes. Waiting for
images is what is left of reading them once it runs beside the work.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from evals.config import RunConfig, compose_config
from evals.datasets.base import ImageDataset
from evals.engine import execute, run
from evals.engine.environment import precision
from evals.engine.job import Job
from evals.engine.models import ModelRun
from evals.engine.store import Cache
from evals.metrics.base import ImageMetric
from evals.metrics.plan import MetricPlan
from evals.tasks.protocol import ReconstructionProtocol
from evals.tasks.reconstruction import evaluation_image, native_images, scored_images, to_tensor
from lactok.interface import Item
from lactok.items import item_seed

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
            items = iter(call(*given))
            while True:
                with self.part(name):
                    item = next(items, None)
                if item is None:
                    return
                yield item

        return timed


def engine(config: RunConfig, clock: Clock) -> Job:
    """The run, its parts timed. Models and metrics' networks are built before the clock starts."""
    with ExitStack() as stack:
        for owner, attribute, timed in (
            (execute, "load_ahead", clock.iterate(execute.load_ahead, "wait for images")),
            (ModelRun, "call", clock.wrap(ModelRun.call, lambda run, step, *_: step)),
            (execute, "_score", clock.wrap(execute._score, lambda job, plan, *_: plan.name)),
            (Cache, "write", clock.wrap(Cache.write, lambda *_: "write")),
        ):
            stack.enter_context(mock.patch.object(owner, attribute, timed))
        with clock.part("rest"):
            return run.run(config, quiet=True).job


def script(job: Job, folder: Path, clock: Clock) -> None:
    """The same images and metrics, the usual way."""
    dataset, protocol = job.dataset, job.task.protocol
    assert isinstance(dataset, ImageDataset)
    assert isinstance(protocol, ReconstructionProtocol)
    names = [plan.name for plan in job.metrics.image]
    for row in job.runs:
        tokenizer = row.row.cls(row.row.options, job.device)
        for number, item in enumerate(dataset.items):
            with clock.part("wait for images"):
                source = dataset.read(item)
                reference = to_tensor([evaluation_image(source, protocol)]).to(job.device)
            with precision(row.conditions.precision, job.device):
                with clock.part("encode"):
                    native = native_images(reference, [source], tokenizer.info.input_size, protocol)
                    encoded = tokenizer.encode(native)
                with clock.part("decode"):
                    seed = item_seed(row.conditions.seed, 0, item.content_hash)
                    back = scored_images(tokenizer.decode(encoded, [seed]), protocol)
            pair = [t[0].permute(1, 2, 0).cpu().numpy() for t in (reference, back)]
            with clock.part("write"):
                for name, image in zip(("reference", "back"), pair, strict=True):
                    Image.fromarray(image).save(folder / f"{number:05}-{name}.png")
            if "psnr" in names:
                with clock.part("psnr"):
                    peak_signal_noise_ratio(*pair, data_range=255)
            if "ssim" in names:
                with clock.part("ssim"):
                    structural_similarity(*pair, channel_axis=2, data_range=255)
        for plan in job.metrics.image:
            if plan.name not in PIXELS:
                _second_pass(dataset.items, folder, plan, job, clock)


def _second_pass(items: Sequence[Item], folder: Path, plan: MetricPlan[ImageMetric], job: Job, clock: Clock) -> None:
    metric, _ = job.metric(plan)
    with clock.part(plan.name), precision("fp32", job.device):
        for number, item in enumerate(items):
            files = (folder / f"{number:05}-{kind}.png" for kind in ("reference", "back"))
            pair = [to_tensor([np.asarray(Image.open(file))]).to(job.device) for file in files]
            reference, back = (metric.embed(image, [item]) for image in pair)
            metric.score(reference, back, [item])
            if plan.cls.feature_dim:
                for embedding in (reference, back):
                    metric.features(embedding)


def compare(settings: list[str]) -> tuple[Clock, Clock, int, Job]:
    """Both ways of one run's work: their clocks, the number of images, and the job."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        warm = compose_config([*settings, "limit=2", f"out='{where / 'warm'}'"])
        run.run(warm, quiet=True)  # imports, kernels, files in the page cache
        first, second = Clock(), Clock()
        job = engine(compose_config([*settings, f"out='{where / 'out'}'"]), first)
        images = where / "images"
        images.mkdir()
        script(job, images, second)
    return first, second, len(job.dataset.items) * len(job.runs), job


def show(console: Console, clocks: dict[str, Clock], count: int) -> None:
    table = Table("part", *(f"{name}, ms an image" for name in clocks))
    for column in table.columns[1:]:
        column.justify = "right"
    for part in dict.fromkeys(part for clock in clocks.values() for part in clock.seconds):
        table.add_row(part, *(f"{1e3 * clock.seconds.get(part, 0) / count:.1f}" for clock in clocks.values()))
    totals = {name: sum(clock.seconds.values()) for name, clock in clocks.items()}
    table.add_section()
    table.add_row("all", *(f"{1e3 * total / count:.1f}" for total in totals.values()))
    table.add_row("images/s", *(f"{count / total:.2f}" for total in totals.values()))
    console.print(table)
    console.print(f"engine / script: {totals['script'] / totals['engine']:.2f} times as many images a second")


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
    axes.set_xlabel("milliseconds an image")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(target, dpi=120)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of python -m evals.run")
    parser.add_argument("--images", type=int, default=64, help="[64]")
    parser.add_argument("--quick", action="store_true", help="8 images")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the parts as stacked bars")
    args = parser.parse_args(argv)
    count = 8 if args.quick else args.images
    defaults = ["tokenizers=llamagen-mini", "calibration=false", f"limit={count}"]
    first, second, done, job = compare([*defaults, *args.set])
    console = Console()
    names = ", ".join(run.row.label for run in job.runs)
    metrics = ", ".join(plan.name for plan in job.metrics.image)
    console.print(
        f"{names}; {done} images of {job.task.image_side()} px; metrics {metrics}; {job.device}, "
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
