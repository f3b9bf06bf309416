"""The miniatures' file: float16 weights with what one must know of them, written whole or not at all."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lactok.checkpoint_file import CheckpointMetadata, read_checkpoint, save_checkpoint
from lactok.files import WriteError
from lactok.interface import TrainingCompute
from lactok.models.vq import VQConfig
from lactok.weights import WeightsError

METADATA = CheckpointMetadata(
    config=asdict(VQConfig(ch=32, encoder_ch_mult=(1, 2), decoder_ch_mult=(1, 2))),
    image_size=64,
    training=TrainingCompute(steps=10, images=240, core_hours=0.5, data="images"),
    recipe="python -m lactok.train recipe=vq scale=mini data.root=DIR",
    code_revision="0123abc",
    data="895 images, sha256 of the list 0123",
)


def test_round_trip(tmp_path: Path):
    path = tmp_path / "new folder" / "a.safetensors"
    weight = torch.randn(3, 5)
    save_checkpoint(path, {"weight": weight, "steps": torch.tensor(7), "view": weight.T}, METADATA)
    stored = load_file(path)
    assert stored["weight"].dtype == torch.float16
    state, metadata = read_checkpoint(path)
    assert metadata.training == METADATA.training
    assert metadata.build_config(VQConfig) == VQConfig(ch=32, encoder_ch_mult=(1, 2), decoder_ch_mult=(1, 2))
    assert {**asdict(metadata), "config": None} == {**asdict(METADATA), "config": None}
    assert state["weight"].dtype == torch.float32
    assert torch.equal(state["weight"], weight.half().float())
    assert torch.equal(state["view"], weight.T.half().float())
    assert state["steps"] == 7
    assert state["steps"].dtype == torch.int64


def test_same_content_same_bytes(tmp_path: Path):
    state = {name: torch.full((4,), float(i)) for i, name in enumerate("edcba")}
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, state, METADATA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"w": torch.zeros(2)}, METADATA)
    before = path.read_bytes()

    def full_disk(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(WriteError, match="the disk is full"):
        save_checkpoint(path, {"w": torch.ones(2)}, METADATA)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_values_beyond_float16_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"encoder\.weight holds values that are not finite in float16"):
        save_checkpoint(tmp_path / "a.safetensors", {"encoder.weight": torch.tensor([1e6])}, METADATA)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"training": None}, "lacks training"),
        ({"image_size": "large"}, "invalid literal"),
        ({"training": '{"minutes": 3}'}, "minutes"),
        ({"config": "{"}, "can't be understood"),
    ],
)
def test_another_file_is_refused_by_name(tmp_path: Path, change: dict[str, str | None], reason: str):
    path = tmp_path / "other.safetensors"
    strings = {k: v for k, v in (METADATA.to_strings() | change).items() if v is not None}
    save_file({"w": torch.zeros(1)}, path, metadata=strings)
    with pytest.raises(WeightsError, match=rf"{re.escape(str(path))}: .*{reason}"):
        read_checkpoint(path)


def test_a_configuration_of_another_model_is_refused():
    other = CheckpointMetadata({"depth": 3}, 64, TrainingCompute(), "", "", "")
    with pytest.raises(WeightsError, match=r"config is none of VQConfig: .*depth"):
        other.build_config(VQConfig)
