"""Checkpoints are found, verified and loaded without running code; what is missing is named with the way out."""

from __future__ import annotations

import argparse
import os
import pickle
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from lactok.weights import (
    HubWeights,
    LocalWeights,
    MissingWeights,
    UrlWeights,
    WeightsError,
    load_state_dict,
    locate,
    override,
    read_metadata,
    sha256_of,
)

HUB = HubWeights("some-one/some-model", "model.pt", revision="0123456789abcdef0123456789abcdef01234567")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, and an empty hub cache, whose folder is returned."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_in_cache(cache: Path, source: HubWeights, content: bytes) -> Path:
    path = cache / f"models--{source.repo.replace('/', '--')}" / "snapshots" / source.revision / source.filename
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_missing_hub_file_names_repo_file_place_and_command(offline: Path):
    with pytest.raises(MissingWeights) as caught:
        locate(HUB)
    message = str(caught.value)
    assert HUB.repo in message
    assert HUB.filename in message
    assert str(offline) in message
    assert f"hf download {HUB.repo} {HUB.filename} --revision {HUB.revision}" in message
    assert "options.NAME.weights=PATH" in message


def test_missing_file_of_a_folder_says_how_to_name_the_folder(offline: Path):
    source = HubWeights(
        "some-one/some-pipeline", "unet/config.json", otherwise="name the folder by options.NAME.dir=DIR"
    )
    with pytest.raises(MissingWeights, match=r"or name the folder by options\.NAME\.dir=DIR$"):
        locate(source)


def test_cached_hub_file_is_found_offline(offline: Path):
    path = put_in_cache(offline, HUB, b"weights")
    assert locate(HUB) == path
    assert locate(HUB, download=False) == path


def test_sha256_decides(offline: Path):
    path = put_in_cache(offline, HUB, b"weights")
    good = sha256(b"weights").hexdigest()
    assert locate(HubWeights(HUB.repo, HUB.filename, HUB.revision, good)) == path
    with pytest.raises(WeightsError, match=rf"has sha256 {good}, expected {'0' * 64}"):
        locate(HubWeights(HUB.repo, HUB.filename, HUB.revision, "0" * 64))


def test_sha256_notices_that_the_file_changed(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    assert sha256_of(path) == sha256(b"one").hexdigest()
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert sha256_of(path) == sha256(b"two").hexdigest()


def test_sha256_notices_a_file_of_the_same_size_and_time(tmp_path: Path):
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"one")
    first, stat = sha256_of(path), path.stat()
    other.write_bytes(b"two")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)  # as `rsync -t` does
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert sha256_of(path) == sha256(b"two").hexdigest() != first


def test_url_file_is_taken_from_the_cache_or_asked_for_by_command(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    source = UrlWeights("https://localhost:9/net-12345678.pth")
    with pytest.raises(MissingWeights, match=r"curl -L --create-dirs -o .*net-12345678\.pth https://localhost:9/net"):
        locate(source)
    path = tmp_path / "checkpoints" / "net-12345678.pth"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"net")
    assert locate(source) == path
    with pytest.raises(WeightsError, match="expected 12345678"):
        locate(UrlWeights(source.url, sha256="12345678"))


def test_local_files(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(MissingWeights, match=f"no file at {path}"):
        locate(LocalWeights(str(path)))
    path.write_bytes(b"")
    assert locate(LocalWeights(str(path))) == path
    assert override(HUB, None) is HUB
    assert locate(override(HUB, str(path))) == path


def test_files_inside_packages():
    assert locate(LocalWeights("weights.py", package="lactok")).name == "weights.py"
    with pytest.raises(MissingWeights, match=r"no file at .*checkpoints/no\.safetensors"):
        locate(LocalWeights("no.safetensors", package="lactok.tokenizers.checkpoints"))
    for package in ("no_such_package", "no_such_package.checkpoints"):
        with pytest.raises(MissingWeights, match="is not installed; run `pip install no_such_package`"):
            locate(LocalWeights("a", package=package))


class Attack:
    """A pickle of it creates a file when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_pickle_that_wants_to_run_code_is_refused(tmp_path: Path, writer: str):
    path, victim = tmp_path / "evil.pt", tmp_path / "victim"
    content = {"model": {"weight": torch.zeros(1)}, "extra": Attack(victim)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(WeightsError, match=r"evil\.pt can't be loaded safely"):
        load_state_dict(path)
    assert not victim.exists()
    torch.load(path, weights_only=False) if writer == "torch" else pickle.loads(path.read_bytes())
    assert victim.exists()  # so the attack was real


def test_what_trainers_put_beside_the_tensors_is_fine(tmp_path: Path):
    path = tmp_path / "a.pt"
    torch.save({"model": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=1e-4), "steps": 3}, path)
    assert torch.equal(load_state_dict(path)["model"]["w"], torch.ones(2))


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("damage", ["garbage", "empty", "truncated"])
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: str):
    path = tmp_path / name
    if name.endswith("pt"):
        torch.save({"w": torch.ones(1000)}, path)
    else:
        save_file({"w": torch.ones(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes({"garbage": b"\x13garbage" * 50, "empty": b"", "truncated": whole[: len(whole) // 2]}[damage])
    with pytest.raises(WeightsError, match=f"{name} can't be loaded safely as a checkpoint"):
        load_state_dict(path)


def test_a_checkpoint_is_a_mapping(tmp_path: Path):
    torch.save([torch.ones(1)], tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="holds a list, expected a mapping"):
        load_state_dict(tmp_path / "a.pt")


def test_metadata_of_safetensors(tmp_path: Path):
    save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors", metadata={"steps": "3"})
    assert read_metadata(tmp_path / "a.safetensors") == {"steps": "3"}
    save_file({"w": torch.ones(1)}, tmp_path / "b.safetensors")
    assert read_metadata(tmp_path / "b.safetensors") == {}
