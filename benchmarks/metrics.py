"""How long this project's metrics take, beside what people use today, on the same pictures in the same process.

    python benchmarks/metrics.py             16 pictures of 1024x1024, three reconstructions of each, two threads
    python benchmarks/metrics.py --quick     a small run that shows that it works

The usual way: scikit-image's PSNR and SSIM picture by picture, the lpips package one pair at a time (AlexNet),
torch-fidelity's calculate_metrics on PNG files written for each tokenizer, all with their defaults. This project's:
the probes as the engine runs them, small batches, one view of the originals for all tokenizers, no files.
Both start from uint8 pictures in memory. Prints seconds and ratios; exits 1 when the two do not agree.
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
from evals.metrics.base import Probe
from evals.metrics.frechet import Rfid
from evals.metrics.inception import Inception
from evals.metrics.lpips import LpipsAlex
from evals.metrics.psnr import Psnr
from evals.metrics.ssim import Ssim
from evals.protocol import to_tensor
from lactok.features import inception, lpips
from lactok.weights import MissingWeights, load_state_dict, locate

BATCH = 2  # the engine's own choice for pictures of this size on a CPU

Pictures = list[np.ndarray]  # uint8 (H, W, 3) each


@dataclass(frozen=True)
class Work:
    """Originals, and for each tokenizer its reconstructions in the same order."""

    originals: Pictures
    tokenizers: dict[str, Pictures]


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
    originals = []
    for i in range(count):
        picture = Image.fromarray(photographs[i % len(photographs)])
        cut = min(picture.size) - 24 * (i // len(photographs))
        originals.append(np.asarray(picture.crop((0, 0, cut, cut)).resize((side, side), Image.Resampling.BICUBIC)))
    return Work(originals, {f"{f}x": [_resampled(p, f) for p in originals] for f in (3, 4, 6, 8)[:tokenizers]})


def _resampled(picture: np.ndarray, factor: int) -> np.ndarray:
    image = Image.fromarray(picture)
    small = image.resize((image.width // factor, image.height // factor), Image.Resampling.LANCZOS)
    return np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))


# --- The usual way ---------------------------------------------------------------------------------------------------


def each_pair(work: Work, score: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    """One value a pair, tokenizer by tokenizer."""
    return np.array([score(a, b) for made in work.tokenizers.values() for a, b in zip(work.originals, made)])


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

    def dump(folder: Path, pictures: Pictures) -> str:
        folder.mkdir()
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / f"{i:05d}.png")
        return str(folder)

    with tempfile.TemporaryDirectory() as temporary:
        originals = dump(Path(temporary) / "originals", work.originals)
        found = []
        for name, made in work.tokenizers.items():
            metrics = calculate_metrics(
                input1=originals,
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
def our_values(work: Work, probe: Probe) -> np.ndarray:
    """A probe's first column for every pair, tokenizer by tokenizer."""
    values: list[list[Tensor]] = [[] for _ in work.tokenizers]
    for part in _batches(len(work.originals)):
        originals = probe.view(to_tensor(work.originals[part]))
        for kept, made in zip(values, work.tokenizers.values()):
            kept.append(probe.compare(originals, probe.view(to_tensor(made[part])))[probe.columns[0].name])
    return torch.cat([torch.cat(kept) for kept in values]).numpy()


@torch.inference_mode()
def our_fid(work: Work, weights: Path) -> np.ndarray:
    """rFID of each tokenizer; the network is built here, since calculate_metrics builds its own."""
    probe, distance = Inception(inception.build(load_state_dict(weights))), Rfid()

    def features(pictures: Pictures) -> Tensor:
        rows = [probe.features(probe.view(to_tensor(pictures[part]))) for part in _batches(len(pictures))]
        return torch.cat(rows)

    originals = features(work.originals)
    return np.array([distance.compute(originals, features(made))["rFID"] for made in work.tokenizers.values()])


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
    module, probe = build_lpips(), LpipsAlex(build_lpips())
    trace = _trace(inception_weights, work.originals)
    return [
        Part("PSNR", lambda: usual_psnr(work), lambda: our_values(work, Psnr()), uint8_bar),
        Part("SSIM uniform7", lambda: usual_ssim(work), lambda: our_values(work, Ssim()), uint8_bar),
        Part("LPIPS alex", lambda: usual_lpips(work, module), lambda: our_values(work, probe), lpips_bar),
        Part(
            "FID",
            lambda: usual_fid(work, inception_weights),
            lambda: our_fid(work, inception_weights),
            lambda want: np.full_like(want, 1e-4 * trace),  # fewer pictures than dimensions: relative to the trace
        ),
    ]


def uint8_bar(want: np.ndarray) -> np.ndarray:
    return np.maximum(1e-6 * np.abs(want), 1e-8)


def lpips_bar(want: np.ndarray) -> np.ndarray:
    return np.minimum(1e-5, 1e-4 * np.abs(want))


@torch.inference_mode()
def _trace(weights: Path, pictures: Pictures) -> float:
    network = inception.build(load_state_dict(weights))
    rows = torch.cat([network(to_tensor(pictures[part]))[0] for part in _batches(len(pictures))])
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
    parser.add_argument("--side", type=int, default=1024, help="of the square pictures, in pixels [1024]")
    parser.add_argument("--pictures", type=int, default=16, help="originals [16]")
    parser.add_argument("--tokenizers", type=int, default=3, choices=(1, 2, 3, 4), help="reconstructions of each [3]")
    parser.add_argument("--threads", type=int, default=2, help="of torch [2]")
    parser.add_argument(
        "--quick", action="store_true", help="side 192, 3 pictures, 1 tokenizer, no warm-up: times mean little"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.side, args.pictures, args.tokenizers = 192, 3, 1
    torch.set_num_threads(args.threads)
    print(describe(args.threads))
    with tempfile.TemporaryDirectory() as folder:
        build_lpips, lpips_weights = lpips_backbone()
        file, inception_weights = inception_file(Path(folder))
        print(f"weights: AlexNet {lpips_weights}, Inception-v3 {inception_weights}")
        print(f"{args.pictures} pictures of {args.side}x{args.side}, {args.tokenizers} tokenizer(s), float32\n")
        warm_up = [] if args.quick else parts_of(make_work(192, 2, 1), build_lpips, file)
        for part in warm_up:  # first calls import packages and choose kernels
            part.usual()
            part.ours()
        return 0 if measure(parts_of(make_work(args.side, args.pictures, args.tokenizers), build_lpips, file)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
