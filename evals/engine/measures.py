"""From metric names to what a run computes: probes over pictures, distances between sets, the use of the codebook."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from evals.config import ConfigError, as_list
from evals.engine.execute import ProbePlan
from evals.engine.reduce import DistancePlan
from evals.metrics import registry as metrics
from evals.protocol import Protocol
from evals.record import ColumnRecord
from lactok.registry import unknown
from lactok.weights import WeightsError, locate, sha256_of

# What a table holds by default, by the `features` setting.
DEFAULTS = {
    "effnet": ("psnr", "ssim", "effnet", "fd-effnet", "colour", "codes"),
    "inception": ("psnr", "ssim", "lpips-alex", "rfid", "kid", "colour", "codes"),
}

POOLED = ColumnRecord("PSNR-pooled", "higher", digits=2, unit="dB", note="PSNR of the mean squared error over all")


@dataclass(frozen=True)
class Measures:
    """What to compute. missing: a line for each metric whose network is not here, which the table then lacks."""

    probes: list[ProbePlan]
    distances: list[DistancePlan]
    codes: bool
    columns: list[ColumnRecord]
    missing: list[str]


def metric_names(wanted: Any, features: str) -> list[str]:
    """The names that `metrics=` means, each once. Raises ConfigError for an unknown one."""
    names = [n for w in as_list(wanted) for n in (DEFAULTS[features] if w == "default" else [w])]
    for name in names:
        if name not in metrics.METRICS:
            raise ConfigError(unknown("metric", name, ["default", *metrics.METRICS]))
    return list(dict.fromkeys(names))


def plan(wanted: Any, features: str, protocol: Protocol) -> Measures:
    """The measures that `metrics=` names, in that order. Raises ConfigError for an unknown name."""
    names = metric_names(wanted, features)
    probes: dict[str, ProbePlan] = {}
    found = Measures([], [], "codes" in names, [], [])
    for name in names:
        spec = metrics.METRICS[name]
        try:
            identity = _identity(name, spec, protocol)
            if spec.probe is not None and spec.probe not in probes:
                probes[spec.probe] = _probe(spec.probe, protocol)
        except WeightsError as error:
            found.missing.append(f"{name}: {error}")
            continue
        if spec.kind == "distance":
            found.distances.append(DistancePlan(metrics.make_distance(name), probes[spec.probe], identity))
        found.columns.extend(
            ColumnRecord(c.name, c.better, c.digits, c.unit, c.note, per_image=spec.kind == "probe")
            for c in spec.columns()
        )
        if name == "psnr":
            found.columns.append(POOLED)
    found.probes.extend(probes.values())
    return found


def _probe(name: str, protocol: Protocol) -> ProbePlan:
    spec = metrics.METRICS[name]
    make = partial(_make, name, protocol.ssim_window, protocol.effnet_size)
    return ProbePlan(name, _identity(name, spec, protocol), make, has_features=spec.has_features)


def _make(name: str, ssim_window: str, effnet_size: int, device: Any) -> Any:
    return metrics.make_probe(name, device, ssim_window=ssim_window, effnet_size=effnet_size)


def _identity(name: str, spec: Any, protocol: Protocol) -> dict[str, Any]:
    """What determines the metric's values, its network's weights included. Raises WeightsError."""
    return {
        "name": name,
        "version": spec.version(),
        "protocol": protocol.subset(*spec.protocol_fields),
        "weights": [sha256_of(locate(source)) for source in spec.weights()],
    }
