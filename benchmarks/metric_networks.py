"""Files of the metrics' networks as they are published: those that are on this machine, else with seeded values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from lactok.feature_extractors import inception, lpips
from lactok.seeded import TensorSpec, manifest_of, seeded_state_dict
from lactok.weights import LocalWeights, MissingWeights, WeightsSource, locate

INCEPTION_MANIFEST = Path(__file__).parent.parent / "tests" / "golden" / "fid" / "manifest.json"
CONV_GAIN = 1.5
"""Without it the deep features of a seeded Inception-v3 hardly depend on the image."""
LPIPS_NETWORKS = ("alex", "vgg")


def seeded_backbone(net: lpips.Net) -> dict[str, torch.Tensor]:
    """Of AlexNet or VGG-16, under LPIPS' names."""
    manifest = manifest_of(lpips.skeleton(net).net)
    return seeded_state_dict({f"net.{name}": spec for name, spec in manifest.items()})


def lpips_source(folder: Path, net: lpips.Net = "alex") -> tuple[WeightsSource, str]:
    """Where a backbone's weights are, and whose they are."""
    try:
        locate(lpips.BACKBONES[net], download=False)
        return lpips.BACKBONES[net], "published"
    except MissingWeights:
        file = folder / f"{net}.pth"
        named = {name.removeprefix("net."): tensor for name, tensor in seeded_backbone(net).items()}
        torch.save({lpips.torchvision_name(name): tensor for name, tensor in named.items()}, file)
        return LocalWeights(str(file)), "seeded"


def inception_file(folder: Path) -> tuple[Path, str]:
    """A file of Inception-v3's weights that torch-fidelity reads, and whose they are."""
    try:
        return locate(inception.WEIGHTS, download=False), "published"
    except MissingWeights:
        entries = json.loads(INCEPTION_MANIFEST.read_text())
        weights = seeded_state_dict({k: TensorSpec(tuple(e["shape"]), e["dtype"]) for k, e in entries.items()})
        file = folder / "seeded.pth"
        torch.save({k: w * CONV_GAIN if k.endswith(".conv.weight") else w for k, w in weights.items()}, file)
        return file, "seeded"


@contextmanager
def metric_networks(folder: Path) -> Iterator[dict[str, str]]:
    """Inside, the metrics find all their networks; yields whose weights each has."""
    weights, whose = inception_file(folder)
    backbones = {net: lpips_source(folder, net) for net in LPIPS_NETWORKS}
    with (
        mock.patch.object(inception, "WEIGHTS", LocalWeights(str(weights))),
        mock.patch.dict(lpips.BACKBONES, {net: source for net, (source, _) in backbones.items()}),
    ):
        yield {"Inception-v3": whose} | {f"LPIPS-{net}": seeded for net, (_, seeded) in backbones.items()}
