"""The metrics by name: what each is, what it needs, how it is made. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from lactok.weights import WeightsSource

if TYPE_CHECKING:
    import torch

    from evals.metrics.base import Column, Distance, Probe


@dataclass(frozen=True)
class MetricSpec:
    """One name of `metrics=[...]`.

    kind: "probe" (values of each picture, or features), "distance" (between two sets of features), "codes" (of ids).
    target: "module:attribute" of its class (of the columns, for "codes"), imported when it is asked for.
    summary: one line for people. probe: whose features a distance reads; a probe's own name; None for codes.
    has_features: whether a probe gives feature rows. protocol_fields: the fields on which its values depend.
    network: "module:attribute" of what it loads, `load(device)`; files: of the sources of its weights.
    """

    kind: Literal["probe", "distance", "codes"]
    target: str
    summary: str
    probe: str | None = None
    has_features: bool = False
    protocol_fields: tuple[str, ...] = ()
    network: str | None = None
    files: Callable[[], tuple[WeightsSource, ...]] = tuple

    def columns(self) -> tuple[Column, ...]:
        """The columns that it fills."""
        found = _import(self.target)
        return found if self.kind == "codes" else found.columns

    def version(self) -> int:
        """Its version: higher when the same pictures give other values."""
        return 1 if self.kind == "codes" else _import(self.target).version

    def weights(self) -> tuple[WeightsSource, ...]:
        """The files that it needs (a distance: that its probe needs)."""
        return self.files()


def _import(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def _lpips(net: str) -> Callable[[], tuple[WeightsSource, ...]]:
    return lambda: _import("lactok.features.lpips:sources")(net)


def _inception() -> tuple[WeightsSource, ...]:
    return (_import("lactok.features.inception:WEIGHTS"),)


def _effnet() -> tuple[WeightsSource, ...]:
    return (_import("lactok.features.effnet:LITE0"),)


def _probe(name: str, target: str, summary: str, **rest: Any) -> MetricSpec:
    return MetricSpec("probe", f"evals.metrics.{target}", summary, probe=name, **rest)


METRICS: Mapping[str, MetricSpec] = {
    "psnr": _probe("psnr", "psnr:Psnr", "PSNR in dB, RGB uint8; mean over pictures, and pooled"),
    "ssim": _probe("ssim", "ssim:Ssim", "SSIM with the protocol's window (uniform7)", protocol_fields=("ssim_window",)),
    "ssim-gauss11": _probe("ssim-gauss11", "ssim:SsimGauss11", "SSIM with the 11-tap Gaussian window"),
    "colour": _probe("colour", "colour:Colour", "colour and brightness shift between mean colours of 8x8 cells"),
    "lpips-alex": _probe(
        "lpips-alex",
        "lpips:LpipsAlex",
        "LPIPS 0.1, AlexNet",
        network="lactok.features.lpips:load_alex",
        files=_lpips("alex"),
    ),
    "lpips-vgg": _probe(
        "lpips-vgg",
        "lpips:LpipsVgg",
        "LPIPS 0.1, VGG-16",
        network="lactok.features.lpips:load_vgg",
        files=_lpips("vgg"),
    ),
    "inception": _probe(
        "inception",
        "inception:Inception",
        "features of torch-fidelity's Inception-v3, for rfid and kid",
        has_features=True,
        network="lactok.features.inception:load",
        files=_inception,
    ),
    "rfid": MetricSpec("distance", "evals.metrics.frechet:Rfid", "reconstruction FID", "inception", files=_inception),
    "kid": MetricSpec("distance", "evals.metrics.kid:Kid", "kernel Inception distance", "inception", files=_inception),
    "effnet": _probe(
        "effnet",
        "effnet:EffnetProbe",
        "EfficientNet-Lite0: perceptual distance, top-1 agreement, features",
        has_features=True,
        protocol_fields=("effnet_size",),
        network="lactok.features.effnet:load_lite0",
        files=_effnet,
    ),
    "fd-effnet": MetricSpec(
        "distance", "evals.metrics.frechet:FdEffnet", "Fréchet distance on EfficientNet-Lite0", "effnet", files=_effnet
    ),
    "codes": MetricSpec(
        "codes", "evals.metrics.codes:COLUMNS", "use of the codebook, perplexity and entropy of the ids"
    ),
}


def make_probe(name: str, device: torch.device, ssim_window: str = "uniform7", effnet_size: int = 224) -> Probe:
    """Build a probe on `device`, its network loaded. Raises lactok.weights.MissingWeights."""
    spec = METRICS[name]
    cls = _import(spec.target)
    if name == "ssim":
        return cls(ssim_window)
    if spec.network is None:
        return cls()
    network = _import(spec.network)(device)
    return cls(network, effnet_size) if name == "effnet" else cls(network)


def make_distance(name: str) -> Distance:
    """Build a distance."""
    return _import(METRICS[name].target)()
