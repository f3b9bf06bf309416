"""Runs the golden cases of the metrics: `lpips`, `fid` and `ssim_psnr`. Everything is read from the case.

Cases also hold figures of other evaluators' conventions, for comparison; those are named in a note, not checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from evals.metrics.image.lpips import Lpips
from evals.metrics.image.psnr import Psnr, pooled_psnr
from evals.metrics.image.ssim import Ssim
from evals.metrics.sets.frechet import frechet_distance
from evals.metrics.sets.kid import kid
from lactok.conformance import CaseError, CaseFolder, CheckLine, compare_floats, failure
from lactok.seeded import TensorSpec

if TYPE_CHECKING:
    from lpips import LPIPS

    from lactok.feature_extractors.lpips import Net

UINT8_RTOL, UINT8_ATOL = 1e-6, 1e-8  # of PSNR and SSIM, which are exact but for the last operations
FLOAT32_RTOL = 1e-5  # against figures that were computed in float32


def _scalar(name: str, got: float, want: float | None, rel: float, atol: float = 0.0, note: str = "") -> CheckLine:
    """Compare two numbers; None stands for +inf (the case's JSON has no infinity)."""
    wanted = torch.tensor(np.inf if want is None else want, dtype=torch.float64)
    line = compare_floats(name, torch.tensor(got, dtype=torch.float64), wanted, rel, atol)
    notes = "; ".join(n for n in (line.note, note) if n)
    return CheckLine(line.tensor, line.max_abs, line.max_rel, line.ids_equal, line.passed, notes)


def _unclaimed(case: CaseFolder, claimed: set[str]) -> Iterator[CheckLine]:
    for name in case.names:
        if name not in claimed:
            yield failure(name, CaseError("stored, but no check knows what it is"))


def _other_conventions(names: list[str]) -> str:
    return f"left out, other conventions: {', '.join(names)}" if names else ""


# --- LPIPS -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def run_lpips(case: CaseFolder) -> Iterator[CheckLine]:
    """Distances, what each stage adds, and maps, for each network and group of pairs of an `lpips` case.

    The linear layers are those of the installed package. The backbones are seeded; where the case says
    `"weights": "real"` they are the published ones, from wherever they are found.
    """
    version, linear = case.setting("version"), case.config.get("lpips", True)
    if (version, linear) != ("0.1", True):
        raise CaseError(f"version {version!r}, lpips {linear}: only 0.1 with linear layers")
    groups = [name.removeprefix("in.a_") for name in case.names if name.startswith("in.a_")]
    claimed = {f"in.{side}_{group}" for side in "ab" for group in groups}
    for net in case.setting("nets"):
        metric = Lpips(_lpips_module(case, net))
        for group in groups:
            a, b = case[f"in.a_{group}"], case[f"in.b_{group}"]
            name = f"out.{net}_{group}"
            stages = metric.stages(metric.embed(a, ()), metric.embed(b, ()))
            found = {name: stages.sum(dim=1), f"{name}_per_layer": stages}
            if f"{name}_spatial_last" in case:
                metric.module.spatial = True
                pair = (x[-1:].float() / 127.5 - 1 for x in (a, b))
                found[f"{name}_spatial_last"] = metric.module(*pair)[0, 0]
                metric.module.spatial = False
            for key, got in found.items():
                if key in case:
                    claimed.add(key)
                    yield compare_floats(key, got, case[key])
    yield from _unclaimed(case, claimed)


def _lpips_module(case: CaseFolder, net: Net) -> LPIPS:
    from lactok.feature_extractors.lpips import build, load

    weights = case.config.get("weights", "seeded")
    if weights == "real":
        return load(net, case.device)
    if weights != "seeded":
        raise CaseError(f'{case.path / "config.json"}: "weights" is {weights!r}, expected "real" or "seeded"')
    return build(net, _seeded_backbone(case, net), case.device)


def _seeded_backbone(case: CaseFolder, net: str) -> dict[str, Tensor]:
    manifest = _json_above(case, f"manifest_{net}.json")["backbone"]
    specs = {name: TensorSpec(tuple(e["shape"]), e["dtype"]) for name, e in manifest.items()}
    return case.seeded(specs, case.setting("seed"))


def _json_above(case: CaseFolder, filename: str) -> dict[str, Any]:
    """A JSON file of the case, else of the folder above."""
    folders = (case.path, case.path.absolute().parent)
    for folder in folders:
        if (folder / filename).is_file():
            return json.loads(Path(folder / filename).read_text(encoding="utf-8"))
    raise CaseError(f"no {filename} in {folders[0]} nor in {folders[1]}")


# --- FID, KID, Inception score, features -----------------------------------------------------------------------------


@torch.no_grad()
def run_fid(case: CaseFolder) -> Iterator[CheckLine]:
    """Inception features and the resize before them, then distances between sets made by the case's recipe."""
    claimed: set[str] = set()
    for line in _inception_lines(case):
        claimed.add(line.tensor)
        yield line
    left_out = [name for name in case.names if name.startswith("mid.cleanfid_")]
    claimed |= {name for name in case.names if name.startswith("in.")} | set(left_out)
    yield from _unclaimed(case, claimed)
    note = _other_conventions(left_out)
    for entry in case.config.get("sets", []):
        yield from _set_lines(entry, note)
        note = ""


def _inception_lines(case: CaseFolder) -> Iterator[CheckLine]:
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    from lactok.feature_extractors.inception import build

    names = case.setting("features")
    gain = case.config.get("conv_weight_gain", 1.0)
    weights = case.seeded_weights()
    weights = {name: w * gain if name.endswith(".conv.weight") else w for name, w in weights.items()}
    network = build(weights, case.device, names)
    size = (network.INPUT_IMAGE_SIZE,) * 2
    for stored in case.names:
        if not (match := re.fullmatch(r"in\.images_(.+)", stored)):
            continue
        images, group = case[stored], match[1]
        resized = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size, align_corners=False)
        found = {
            f"mid.tf1_resize_{group}_corner": resized[0, :, :24, :24],
            f"mid.tf1_resize_{group}_mean": resized[:1].double().mean(dim=(2, 3)),
        }
        found |= {f"out.features_{name}_{group}": got for name, got in zip(names, network(images), strict=True)}
        for name, got in found.items():
            if name in case:
                yield compare_floats(name, got, case[name])


def _set_lines(entry: dict[str, Any], note: str) -> Iterator[CheckLine]:
    """Distances of one pair of sets. FID: 1e-6 of the traces, and 1e-4 against the package where one is singular."""
    name = entry["name"]
    first, second = (_feature_set(entry[key]) for key in ("set1", "set2"))
    for key, features in zip(("set1_sum", "set2_sum"), (first, second), strict=True):
        if key in entry:
            yield _scalar(f"{name}.{key}", float(features.double().sum()), entry[key], rel=1e-9)
    trace = sum(float(x.double().var(dim=0).sum()) for x in (first, second))
    singular = any("rank" in entry[key] or entry[key]["n"] <= entry[key]["dd"] for key in ("set1", "set2"))
    distance = frechet_distance(first, second)
    others = [key for key in entry if key.startswith("fid_sqrtm")]
    note = "; ".join(n for n in (note, _other_conventions(others)) if n)
    yield _scalar(f"{name}.fid", distance, entry["fid"], 0.0, (1e-4 if singular else 1e-6) * trace, note)
    if "fid_symmetric_eigh" in entry:
        yield _scalar(f"{name}.fid_symmetric_eigh", distance, entry["fid_symmetric_eigh"], 0.0, 1e-6 * trace)
    for key, want in entry.items():
        if key == "kid_default":
            yield from _pair(f"{name}.{key}", kid(first, second), want, "kernel_inception_distance", atol=1e-6)
        elif match := re.fullmatch(r"kid_subset(\d+)x(\d+)", key):
            got = kid(first, second, subset_size=int(match[1]), subsets=int(match[2]))
            yield from _pair(f"{name}.{key}", got, want, "kernel_inception_distance", atol=1e-6)
        elif match := re.fullmatch(r"isc_of_set1_as_logits_splits(\d+)", key):
            got = _inception_score(4 * first, int(match[1]))
            yield from _pair(f"{name}.{key}", got, want, "inception_score")


def _feature_set(recipe: dict[str, Any]) -> Tensor:
    """Feature rows by the recipe of the case: float32 (n, dd), correlated; cut at 0 unless of low rank."""
    stream = np.random.RandomState(recipe["rs"])
    n, dim = recipe["n"], recipe["dd"]
    rank = recipe.get("rank", dim)
    z = stream.standard_normal((n, rank))
    mixing = stream.standard_normal((rank, dim)) / np.sqrt(rank)
    x = z @ mixing * recipe["scale"] + recipe["shift"]
    return torch.from_numpy((x if "rank" in recipe else np.maximum(x, 0)).astype(np.float32))


def _inception_score(logits: Tensor, splits: int) -> tuple[float, float]:
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    found = isc_features_to_metric(logits, splits)
    return found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD]


def _pair(
    name: str, got: tuple[float, float], want: dict[str, float], key: str, atol: float = 0.0
) -> Iterator[CheckLine]:
    for part, value in zip(("mean", "std"), got, strict=True):
        yield _scalar(f"{name}_{part}", value, want[f"{key}_{part}"], 1e-4, atol)


# --- PSNR and SSIM ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """A pair of images by the recipe of the case."""

    seed: int
    height: int
    width: int
    amount: int
    kind: str

    def make(self) -> tuple[np.ndarray, np.ndarray]:
        """Both images, uint8 (H, W, 3): blocks of 8x8 with noise, and a damaged copy of them."""
        stream = np.random.RandomState(self.seed)
        shape = (self.height, self.width, 3)
        low = stream.randint(0, 256, (-(-self.height // 8), -(-self.width // 8), 3))
        a = low.repeat(8, axis=0).repeat(8, axis=1)[: self.height, : self.width]
        a = np.clip(a + stream.randint(-24, 25, shape), 0, 255)
        n = self.amount
        if self.kind == "noise":
            b = np.clip(a + stream.randint(-n, n + 1, shape), 0, 255)
        elif self.kind == "shift":
            b = np.roll(a, n, axis=1)
        elif self.kind == "bias":
            b = np.clip(a + n, 0, 255)
        elif self.kind == "quantise":
            b = a // n * n
        elif self.kind == "blur":
            around = range(-n, n + 1)
            b = sum(np.roll(a, (dy, dx), axis=(0, 1)) for dy in around for dx in around) // (2 * n + 1) ** 2
        elif self.kind == "same":
            b = a
        else:
            raise CaseError(f"pair of unknown kind {self.kind!r}: expected noise, shift, bias, quantise, blur or same")
        return a.astype(np.uint8), b.astype(np.uint8)


@dataclass(frozen=True)
class _Scores:
    mse: float
    psnr: float
    ssim: float
    ssim_gauss: float

    @staticmethod
    def of(a: np.ndarray, b: np.ndarray, device: torch.device) -> _Scores:
        x, y = (torch.from_numpy(p).permute(2, 0, 1)[None].contiguous().to(device) for p in (a, b))
        psnr, uniform, gauss = Psnr(), Ssim("uniform7"), Ssim("gauss11")
        found = psnr.score(psnr.embed(x, ()), psnr.embed(y, ()), ())
        ssims = [m.score(m.embed(x, ()), m.embed(y, ()), ())["SSIM"] for m in (uniform, gauss)]
        return _Scores(*(float(v) for v in (found["MSE"], found["PSNR"], *ssims)))


def run_ssim_psnr(case: CaseFolder) -> Iterator[CheckLine]:
    """PSNR and SSIM of the pairs that the case's recipe makes; sums and stored pairs show that the recipe is right."""
    claimed: set[str] = set()
    left_out: dict[str, None] = {}
    for entry in case.setting("cases"):
        pair = _Pair(*(entry[key] for key in ("seed", "height", "width", "amount", "kind")))
        label = f"{pair.kind}{pair.amount}_{pair.height}x{pair.width}_seed{pair.seed}"
        a, b = pair.make()
        for side, image in (("a", a), ("b", b)):
            yield _scalar(f"{label}.{side}_sum", float(image.astype(np.int64).sum()), entry[f"{side}_sum"], 0.0)
            if (stored := f"in.{side}_seed{pair.seed}") in case:
                claimed.add(stored)
                yield compare_floats(stored, torch.from_numpy(image), case[stored], rel=0.0)
        ours = _by_key(_Scores.of(a, b, case.device))
        for key, want in entry["results"].items():
            if key in ours:
                yield _scalar(f"{label}.{key}", ours[key], want, UINT8_RTOL, UINT8_ATOL)
            else:
                left_out[key] = None
    yield from _unclaimed(case, claimed)
    if "aggregation" in case.config:
        yield from _aggregation_lines(case.config["aggregation"], list(left_out), case.device)


def _by_key(scores: _Scores) -> dict[str, float]:
    """The case's names of our figures. PSNR and SSIM do not change when images and data range are scaled alike."""
    return {
        "psnr_skimage_uint8_255": scores.psnr,
        "psnr_skimage_float64_01_range1": scores.psnr,
        "psnr_skimage_float_pm1_range2": scores.psnr,
        "mse_01": scores.mse / 255**2,
        "ssim_skimage_uint8_win7_range255": scores.ssim,
        "ssim_skimage_float64_win7_range1": scores.ssim,
        "ssim_skimage_gaussian_sigma1.5_samplecov_false_range255_Wang": scores.ssim_gauss,
    }


def _aggregation_lines(entry: dict[str, Any], left_out: list[str], device: torch.device) -> Iterator[CheckLine]:
    """Figures over several pairs: means over images, and PSNR of the mean squared error."""
    scores = [_Scores.of(*_Pair(*pair).make(), device) for pair in entry["pairs"]]
    ours = {
        "psnr_mean_of_images": (float(np.mean([s.psnr for s in scores])), UINT8_RTOL),
        "psnr_torchmetrics_accumulated_range1": (pooled_psnr(torch.tensor([s.mse for s in scores])), FLOAT32_RTOL),
        "ssim_mean_of_images_win7": (float(np.mean([s.ssim for s in scores])), UINT8_RTOL),
    }
    note = _other_conventions(left_out + [key for key in entry["results"] if key not in ours])
    for key, want in entry["results"].items():
        if key in ours:
            got, rel = ours[key]
            yield _scalar(f"aggregation.{key}", got, want, rel, UINT8_ATOL, note)
            note = ""
