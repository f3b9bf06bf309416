"""How long this project's metrics take, beside what people use today, on the same images in the same process.

    python benchmarks/metrics.py             16 images of 1024x1024, three reconstructions of each, two threads
    python benchmarks/metrics.py --quick     a small run that shows that it works

The usual way: scikit-image's PSNR and SSIM image by image, the lpips package one pair at a time (AlexNet),
torch-fidelity's calculate_metrics on PNG files written for each tokenizer, all with their defaults. This project's:
the metrics as the engine runs them, small batches, one embedding of the references for all tokenizers, no files.
Both start from uint8 images in memory. Prints seconds and ratios; exits 1 when the two do not agree.
Networks have their published weights where these are in torch's cache, else seeded ones (the time is the same).
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from benchmarks.metric_networks import inception_file, seeded_backbone
from evals.metrics.base import ImageMetric
from evals.metrics.image.inception import Inception
from evals.metrics.image.lpips import LpipsAlex
from evals.metrics.image.psnr import Psnr
from evals.metrics.image.ssim import Ssim
from evals.metrics.sets.frechet import Rfid
from lactok.feature_extractors import inception, lpips
from lactok.interface import Item
from lactok.weights import MissingWeights, load_state_dict, locate

BATCH = 2  # the engine's own choice for images of this size on a CPU

Images = list[np.ndarray]  # uint8 (H, W, 3) each


@dataclass(frozen=True)
class Work:
    """References, and for each tokenizer its reconstructions in the same order."""

    references: Images
    tokenizers: dict[str, Images]

    def items(self, part: slice) -> list[Item]:
        """Those of a batch."""
        return [Item(str(i), str(i), f"{i:064x}") for i in range(part.start, part.stop)]


@dataclass(frozen=True)
class Part:
    """One metric both ways. Each way returns the values in one order; `allowed` says how far they may be apart."""

    name: str
    usual: Callable[[], np.ndarray]
    ours: Callable[[], np.ndarray]
    allowed: Callable[[np.ndarray], np.ndarray]


def make_work(side: int, count: int, tokenizers: int) -> Work:
    """Cuts of scikit-image's photographs scaled to `side`, and what coarser and coarser resampling leaves of them."""
    photographs = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.hubble_deep_field()]
    references = []
    for i in range(count):
        image = Image.fromarray(photographs[i % len(photographs)])
        cut = min(image.size) - 24 * (i // len(photographs))
        references.append(np.asarray(image.crop((0, 0, cut, cut)).resize((side, side), Image.Resampling.BICUBIC)))
    return Work(references, {f"{f}x": [_resampled(p, f) for p in references] for f in (3, 4, 6, 8)[:tokenizers]})


def to_tensor(images: Images) -> Tensor:
    """uint8 (B, 3, H, W)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _resampled(pixels: np.ndarray, factor: int) -> np.ndarray:
    image = Image.fromarray(pixels)
    small = image.resize((image.width // factor, image.height // factor), Image.Resampling.LANCZOS)
    return np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))


# --- The usual way ---------------------------------------------------------------------------------------------------


def each_pair(work: Work, score: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    """One value a pair, tokenizer by tokenizer."""
    return np.array([score(a, b) for made in work.tokenizers.values() for a, b in zip(work.references, made)])


def usual_psnr(work: Work) -> np.ndarray:
    from skimage.metrics import peak_signal_noise_ratio

    return each_pair(work, lambda a, b: peak_signal_noise_ratio(a, b, data_range=255))


def usual_ssim(work: Work) -> np.ndarray:
    from skimage.metrics import structural_similarity

    return each_pair(work, lambda a, b: structural_similarity(a, b, channel_axis=-1, data_range=255))


def usual_lpips(work: Work, module: torch.nn.Module) -> np.ndarray:
    from lpips import im2tensor

    with torch.no_grad():
        return each_pair(work, lambda a, b: module(im2tensor(a), im2tensor(b)).item())


def usual_fid(work: Work, weights: Path) -> np.ndarray:
    from torch_fidelity import calculate_metrics

    warnings.filterwarnings("ignore", message="This DataLoader will create 4 worker processes")  # its own default

    def dump(folder: Path, images: Images) -> str:
        folder.mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{i:05d}.png")
        return str(folder)

    with tempfile.TemporaryDirectory() as temporary:
        references = dump(Path(temporary) / "references", work.references)
        found = []
        for name, made in work.tokenizers.items():
            metrics = calculate_metrics(
                input1=references,
                input2=dump(Path(temporary) / name, made),
                fid=True,
                cuda=False,
                verbose=False,
                feature_extractor_weights_path=str(weights),
            )
            found.append(metrics["frechet_inception_distance"])
        return np.array(found)


# --- This project's way ----------------------------------------------------------------------------------------------


@torch.inference_mode()
def our_values(work: Work, metric: ImageMetric) -> np.ndarray:
    """A metric's first column for every pair, tokenizer by tokenizer."""
    values: list[list[Tensor]] = [[] for _ in work.tokenizers]
    for part in _batches(len(work.references)):
        items = work.items(part)
        reference = metric.embed(to_tensor(work.references[part]), items)
        for kept, made in zip(values, work.tokenizers.values()):
            embedding = metric.embed(to_tensor(made[part]), items)
            kept.append(metric.score(reference, embedding, items)[metric.columns[0].name])
    return torch.cat([torch.cat(kept) for kept in values]).numpy()


@torch.inference_mode()
def our_fid(work: Work, weights: Path) -> np.ndarray:
    """rFID of each tokenizer; the network is built here, since calculate_metrics builds its own."""
    metric, rfid = Inception(inception.build(load_state_dict(weights))), Rfid()

    def features(images: Images) -> Tensor:
        parts = _batches(len(images))
        return torch.cat([metric.features(metric.embed(to_tensor(images[part]), work.items(part))) for part in parts])

    reference = features(work.references)
    return np.array([rfid.compute(features(made), reference)["rFID"] for made in work.tokenizers.values()])


def _batches(count: int) -> list[slice]:
    return [slice(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]


def lpips_backbone() -> tuple[Callable[[], torch.nn.Module], str]:
    """A way to build the network, and whose weights it has."""
    try:
        locate(lpips.BACKBONES["alex"], download=False)
        return lpips.load_alex, "published"
    except MissingWeights:
        return lambda: lpips.build("alex", seeded_backbone("alex")), "seeded"


# --- Measuring -------------------------------------------------------------------------------------------------------


def parts_of(work: Work, build_lpips: Callable[[], torch.nn.Module], inception_weights: Path) -> list[Part]:
    module, ours = build_lpips(), LpipsAlex(build_lpips())
    trace = _trace(inception_weights, work.references)
    return [
        Part("PSNR", lambda: usual_psnr(work), lambda: our_values(work, Psnr()), uint8_bar),
        Part("SSIM uniform7", lambda: usual_ssim(work), lambda: our_values(work, Ssim()), uint8_bar),
        Part("LPIPS alex", lambda: usual_lpips(work, module), lambda: our_values(work, ours), lpips_bar),
        Part(
            "FID",
            lambda: usual_fid(work, inception_weights),
            lambda: our_fid(work, inception_weights),
            lambda want: np.full_like(want, 1e-4 * trace),  # fewer images than dimensions: relative to the trace
        ),
    ]


def uint8_bar(want: np.ndarray) -> np.ndarray:
    return np.maximum(1e-6 * np.abs(want), 1e-8)


def lpips_bar(want: np.ndarray) -> np.ndarray:
    return np.minimum(1e-5, 1e-4 * np.abs(want))


@torch.inference_mode()
def _trace(weights: Path, images: Images) -> float:
    network = inception.build(load_state_dict(weights))
    rows = torch.cat([network(to_tensor(images[part]))[0] for part in _batches(len(images))])
    return float(rows.double().var(dim=0).sum())


def timed(call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    values = call()
    return time.perf_counter() - started, values


def measure(parts: Sequence[Part]) -> bool:
    """Print the table; whether all parts agree."""
    print(f"{'':15}{'usual, s':>10}{'here, s':>10}{'ratio':>8}   largest difference")
    total_usual = total_ours = 0.0
    agree = True
    for part in parts:
        usual, want = timed(part.usual)
        ours, got = timed(part.ours)
        difference = np.abs(got - want)
        good = bool((difference <= part.allowed(want)).all())
        agree &= good
        total_usual, total_ours = total_usual + usual, total_ours + ours
        verdict = "within the bar" if good else f"OUTSIDE THE BAR: {got} here, {want} the usual way"
        print(f"{part.name:15}{usual:10.2f}{ours:10.2f}{usual / ours:8.2f}   {difference.max():.2g}, {verdict}")
    print(f"{'total':15}{total_usual:10.2f}{total_ours:10.2f}{total_usual / total_ours:8.2f}")
    return agree


def describe(threads: int) -> str:
    packages = ("torch", "numpy", "scikit-image", "lpips", "torch-fidelity", "pillow")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    load = f"; load average before {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    machine = f"{_processor()}, {os.cpu_count()} cores, {threads} threads{load}"
    return f"{machine}\nPython {platform.python_version()}, {versions}"


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((s.split(":", 1)[1].strip() for s in lines if s.startswith("model name")), platform.processor())


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="of the square images, in pixels [1024]")
    parser.add_argument("--images", type=int, default=16, help="references [16]")
    parser.add_argument("--tokenizers", type=int, default=3, choices=(1, 2, 3, 4), help="reconstructions of each [3]")
    parser.add_argument("--threads", type=int, default=2, help="of torch [2]")
    parser.add_argument(
        "--quick", action="store_true", help="side 192, 3 images, 1 tokenizer, no warm-up: times mean little"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.side, args.images, args.tokenizers = 192, 3, 1
    torch.set_num_threads(args.threads)
    print(describe(args.threads))
    with tempfile.TemporaryDirectory() as folder:
        build_lpips, lpips_weights = lpips_backbone()
        file, inception_weights = inception_file(Path(folder))
        print(f"weights: AlexNet {lpips_weights}, Inception-v3 {inception_weights}")
        print(f"{args.images} images of {args.side}x{args.side}, {args.tokenizers} tokenizer(s), float32\n")
        warm_up = [] if args.quick else parts_of(make_work(192, 2, 1), build_lpips, file)
        for part in warm_up:  # first calls import packages and choose kernels
            part.usual()
            part.ours()
        return 0 if measure(parts_of(make_work(args.side, args.images, args.tokenizers), build_lpips, file)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
