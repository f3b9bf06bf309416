"""Part 4: how fast each metric looks at images, and what all of them cost beside a LacTok-H decode."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu_parts.coding import BFLOAT16, LACTOK, Coded
from benchmarks.gpu_session import Job, Session
from benchmarks.measuring import call_times, gib, peak_bytes
from benchmarks.metric_networks import metric_networks
from evals.engine.environment import precision
from evals.metrics.base import ImageMetric
from evals.metrics.plan import metric_class
from evals.tasks.protocol import ReconstructionProtocol

PROBES = ("lpips-alex", "lpips-vgg", "inception", "ssim", "psnr", "colour")
SIDE, BATCH = 1024, 16
"""The paper's evaluation size, and the batch that a run takes on a GPU."""
QUICK_SIDE, QUICK_BATCH = 96, 2
DEFAULT_METRICS = ("psnr", "ssim", "lpips-alex", "inception", "colour")
"""What scale=paper computes by default over images; rfid and kid read inception's features."""


@dataclass(frozen=True)
class MetricRate:
    """One metric on pairs of images, float32, both views of a pair counted. seconds: of a pair, median call."""

    metric: str
    weights: str
    side: int
    batch: int
    calls: int
    images_per_second: float
    seconds: float
    peak_bytes: int | None

    def __str__(self) -> str:
        return (
            f"{self.metric} ({self.weights}), {self.side} px, batch {self.batch}: "
            f"{self.images_per_second:.4g} images/s, {gib(self.peak_bytes)} GiB"
        )


@dataclass(frozen=True)
class MetricsShare:
    """All default metrics of scale=paper beside a decode of one image. seconds: of all; share: of `decode_seconds`."""

    metrics: tuple[str, ...]
    decode: str
    seconds: float
    decode_seconds: float
    share: float

    def __str__(self) -> str:
        return f"{', '.join(self.metrics)}: {1e3 * self.seconds:.3g} ms an image, {self.share:.1%} of {self.decode}"


def measure(session: Session) -> None:
    with tempfile.TemporaryDirectory() as folder, metric_networks(Path(folder)) as whose:
        session.each(
            [
                *(Job(name, lambda name=name: rate(session, name, whose)) for name in PROBES),
                Job("the default metrics' share of a decode", lambda: shares(session)),
            ]
        )


def rate(session: Session, name: str, whose: dict[str, str]) -> Iterator[MetricRate]:
    """As the engine scores: references and images are embedded and scored, with the features of both."""
    side, batch = (QUICK_SIDE, QUICK_BATCH) if session.quick else (SIDE, BATCH)
    cls = metric_class(name)
    assert issubclass(cls, ImageMetric), f"{name} is no image metric"
    protocol = ReconstructionProtocol("benchmark", side, "squash")
    metric = cls.build(session.device, protocol.subset(*cls.protocol_fields))
    draws = torch.Generator(session.device).manual_seed(0)
    pair = [
        torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=draws, device=session.device)
        for _ in range(2)
    ]

    def call() -> None:
        with precision("fp32", session.device):
            reference, embedding = (metric.embed(images, ()) for images in pair)
            metric.score(reference, embedding, ())
            if cls.feature_dim:
                for embedded in (reference, embedding):
                    metric.features(embedded)

    call_times(call, session.device, 0)
    times = call_times(call, session.device, session.settings.seconds)
    seconds = statistics.median(times) / batch
    weights = {"inception": "Inception-v3", "lpips-alex": "LPIPS-alex", "lpips-vgg": "LPIPS-vgg"}.get(name)
    told = f"{whose[weights]} weights" if weights else "no network"
    yield MetricRate(name, told, side, batch, len(times), 1 / seconds, seconds, peak_bytes(call, session.device))


def shares(session: Session) -> Iterator[MetricsShare]:
    """Of the fastest eager and the fastest compiled decode that a run makes. Raises ValueError where a figure lacks."""
    seconds = {found.metric: found.seconds for found in session.found if isinstance(found, MetricRate)}
    decodes = [
        found
        for found in session.found
        if isinstance(found, Coded)
        and (found.tokenizer, found.part) == (LACTOK[0], "decode")
        and found.weights != BFLOAT16
    ]
    lacking = [name for name in DEFAULT_METRICS if name not in seconds] + ([] if decodes else [f"{LACTOK[0]} decode"])
    if lacking:
        raise ValueError(f"not measured in this run: {', '.join(lacking)}")
    total = sum(seconds[name] for name in DEFAULT_METRICS)
    for compiled in (False, True):
        if same := [found for found in decodes if found.compiled is compiled]:
            best = max(same, key=lambda found: found.images_per_second)
            each = 1 / best.images_per_second
            how = f"{'a compiled' if compiled else 'an eager'} {best.tokenizer} decode, batch {best.batch}"
            yield MetricsShare(DEFAULT_METRICS, how, total, each, total / each)
