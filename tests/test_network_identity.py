"""Stored scores belong to a network's tensors: shared by all files that hold them, and by no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evals.engine import run as engine
from evals.metrics.image.lpips import Lpips
from lactok.feature_extractors import imagenet, lpips
from lactok.weights import NetworkFile, NetworkWeights, UrlWeights, load_tensors
from tests.plugin_runs import plugin, rows, run
from tests.support import TOY, pictures


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torchvision's AlexNet would lie, were it here; its sha256 is not compared. No network."""

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    both = imagenet.BACKBONES["alex"]
    url = UrlWeights(both.files[0].source.url)
    network = NetworkWeights(both.what, (NetworkFile(url, imagenet.read_torchvision), both.files[1]))
    monkeypatch.setitem(lpips.BACKBONES, "alex", network)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / url.filename


def test_scores_of_one_network_are_never_shown_as_anothers(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch):
    data = pictures(tmp_path / "data", 6)
    embed, passes = Lpips.embed, []
    monkeypatch.setattr(Lpips, "embed", lambda *given: passes.append(1) or embed(*given))

    def measured(out: str) -> tuple[float, int]:
        """LPIPS of the toy tokenizer, and how often the network ran for it."""
        passes.clear()
        finished: engine.Finished = run(data, tmp_path / out, "tokenizers=toy", "metrics=lpips-alex")
        assert finished.record.missing_metrics == []
        return rows(finished)["toy"].cells["LPIPS-alex"].value, len(passes)

    with plugin(tmp_path / "plugin", TOY, {"toy": "Toy"}):
        shipped, count = measured("out")
        assert shipped > 0.1
        assert count > 0
        tensors = load_tensors(lpips.BACKBONES["alex"])
        torch.save(tensors, hub)
        assert measured("out") == (shipped, 0)  # the same network from another file: nothing is computed anew
        tensors["features.0.weight"] = tensors["features.0.weight"].flip(1)  # as if for images in BGR
        torch.save(tensors, hub)
        swapped, again = measured("out")
        assert abs(swapped - shipped) > 1e-3
        assert again == count
        assert measured("new")[0] == swapped
        hub.unlink()
        assert measured("out") == (shipped, 0)
