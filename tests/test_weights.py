"""Checkpoints are found, verified and loaded without running code; what is missing is named with the way out."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pickle
import socket
import time
from hashlib import sha256
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub import constants, errors
from omegaconf import OmegaConf
from safetensors.torch import save_file

from lactok import digests, hub, weights
from lactok.numpy_pickle import read_numpy_pickle
from lactok.state_dict import find_state_dict
from lactok.weights import (
    DistributionWeights,
    HubWeights,
    LocalWeights,
    MissingWeights,
    NetworkFile,
    NetworkWeights,
    UrlWeights,
    WeightsError,
    hash_tensors,
    identity_of,
    is_pinned,
    load_state_dict,
    load_tensors,
    locate,
    locate_all,
    override,
    read_metadata,
    saved_files,
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


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed distribution `some-net` whose package can't be imported; it holds `net.bin`."""
    (tmp_path / "some_net-1.2.dist-info").mkdir()
    (tmp_path / "some_net-1.2.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: some-net\nVersion: 1.2\n"
    )
    (tmp_path / "some_net").mkdir()
    (tmp_path / "some_net" / "__init__.py").write_text("raise ImportError('jax is not here')")
    (tmp_path / "some_net" / "net.bin").write_bytes(b"net")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "some_net"


def test_files_of_installed_distributions_are_found_without_an_import(distribution: Path):
    source = DistributionWeights("some-net", "some_net/net.bin", sha256(b"net").hexdigest(), "--no-deps some-net==1.2")
    assert locate(source) == locate(source, download=False) == distribution / "net.bin"
    (distribution / "net.bin").write_bytes(b"other")
    with pytest.raises(WeightsError, match=f"expected {source.sha256}"):
        locate(source)
    (distribution / "net.bin").unlink()
    with pytest.raises(MissingWeights, match=r"some-net 1\.2 has no file .*net\.bin.*pip install .*some-net==1\.2`"):
        locate(source)
    gone = DistributionWeights("no-such-net", "a", "0" * 64, "--no-deps no-such-net==3")
    with pytest.raises(
        MissingWeights, match=r"no-such-net is not installed; run `pip install --no-deps no-such-net==3`"
    ):
        locate(gone)
    with pytest.raises(MissingWeights, match="no-such-net is not installed"):
        locate_all([gone])


def read_plain(path: Path) -> dict[str, torch.Tensor]:
    return load_state_dict(path)


def read_transposed(path: Path) -> dict[str, torch.Tensor]:
    """Of a form with other names and another layout."""
    return {name.removeprefix("net/"): value.T for name, value in load_state_dict(path).items()}


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NetworkWeights:
    """A network that can be downloaded, or lies in a file of another form; neither is here yet."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", _refuse)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    url, other = UrlWeights("https://localhost:9/net.pt"), LocalWeights(str(tmp_path / "other.safetensors"))
    return NetworkWeights("a net", (NetworkFile(url, read_plain), NetworkFile(other, read_transposed)))


def _refuse(*_: object, **__: object) -> None:
    raise OSError("no network")


NET = {"w": torch.arange(6.0).view(2, 3), "b": torch.ones(1, 2)}


def write_forms(network: NetworkWeights, tensors: dict[str, torch.Tensor], *which: int) -> list[Path]:
    """The network's files, `which` of them written anew."""
    paths = [
        Path(torch.hub.get_dir()) / "checkpoints" / network.files[0].source.filename,
        Path(network.files[1].source.path),
    ]
    if 0 in which:
        torch.save(tensors, paths[0])
    if 1 in which:
        save_file({f"net/{name}": value.T.contiguous() for name, value in tensors.items()}, paths[1])
    return paths


def test_a_network_of_which_no_file_is_here_names_every_way_to_get_it(network: NetworkWeights):
    for download in (False, True):
        with pytest.raises(MissingWeights) as caught:
            locate(network, download)
        for told in ("a net", "(1) net.pt is not here", "curl -L", "(2) ", "other.safetensors"):
            assert told in str(caught.value)


def test_a_network_comes_from_the_first_file_that_is_here_before_any_download(
    network: NetworkWeights, monkeypatch: pytest.MonkeyPatch
):
    first, second = write_forms(network, NET, 1)
    assert locate(network) == second  # the download, which is refused, is not tried
    assert {name: value.tolist() for name, value in load_tensors(network).items()} == {
        name: value.tolist() for name, value in NET.items()
    }
    write_forms(network, NET, 0)
    assert locate(network) == first
    for path in (first, second):
        path.unlink()
    monkeypatch.setattr(hub, "require_network", lambda url: None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path, **_: torch.save(NET, path))
    with pytest.raises(MissingWeights):
        locate(network, download=False)
    assert locate(network) == first
    assert torch.equal(load_tensors(network)["w"], NET["w"])


def test_a_damaged_file_is_told_and_no_other_is_used_in_its_place(network: NetworkWeights, tmp_path: Path):
    write_forms(network, NET, 0, 1)
    pinned = NetworkFile(UrlWeights(network.files[0].source.url, sha256="0" * 8), read_plain)
    with pytest.raises(WeightsError, match="expected 00000000"):
        load_tensors(NetworkWeights("a net", (pinned, network.files[1])))


def test_the_identity_of_a_network_is_that_of_its_tensors(network: NetworkWeights):
    first, second = write_forms(network, NET, 1)
    told = identity_of(network)
    write_forms(network, NET, 0)
    assert sha256(first.read_bytes()).hexdigest() != sha256(second.read_bytes()).hexdigest()
    assert identity_of(network) == told == hash_tensors(NET)
    changed = {name: value.clone() for name, value in NET.items()}
    changed["b"][0, 1] = 1.5
    write_forms(network, changed, 0)
    assert identity_of(network) == hash_tensors(changed) != told
    assert identity_of(LocalWeights(str(second))) == sha256(second.read_bytes()).hexdigest()


def test_names_shapes_and_kinds_are_in_a_hash_of_tensors():
    values = torch.arange(4.0)
    variants = [
        {"a": values}, {"b": values}, {"a": values.view(2, 2)}, {"a": values.view(torch.int32)}, {"a": values.flip(0)},
        {"a": values[:2], "b": values[2:]}, {"a": values[:2], "c": values[2:]},
    ]  # fmt: skip
    assert len({hash_tensors(variant) for variant in variants}) == len(variants)
    assert hash_tensors({"a": values, "b": values}) == hash_tensors({"b": values, "a": values})
    assert hash_tensors({"a": values.view(2, 2).T}) == hash_tensors({"a": values.view(2, 2).T.contiguous()})


def test_a_network_is_pinned_when_all_its_files_are():
    pinned, other = (NetworkFile(UrlWeights("https://localhost/a", digest), read_plain) for digest in ("ab", None))
    assert is_pinned(NetworkWeights("n", (pinned, pinned)))
    assert not is_pinned(NetworkWeights("n", (pinned, other)))
    assert not is_pinned(HUB)


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


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_arrays_are_read_and_run_no_code(tmp_path: Path, protocol: int):
    arrays = {"net": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": [1, 2.5, "a", (True, None)]}}
    path, victim = tmp_path / "a.ckpt", tmp_path / "victim"
    if protocol in (3, 4):  # others write the bytes by calls, which are refused like any other
        path.write_bytes(pickle.dumps(arrays, protocol))
        found = read_numpy_pickle(path)["net"]
        assert found["kernel"].tolist() == arrays["net"]["kernel"].tolist()
        assert found["steps"] == arrays["net"]["steps"]
    path.write_bytes(pickle.dumps({"net": {"weight": 0, "extra": Attack(victim)}}, protocol))
    with pytest.raises(pickle.UnpicklingError, match=r"it wants (io|_io|builtins|__builtin__)\.open"):
        read_numpy_pickle(path)
    assert not victim.exists()
    pickle.loads(path.read_bytes())
    assert victim.exists()  # so the attack was real


@pytest.mark.parametrize(
    "name", [b"numpy.core.multiarray\nscalar", b"numpy\nload", b"builtins\neval", b"os\nsystem", b"numpy\nndarray.dump"]
)
def test_pickles_of_arrays_may_name_nothing_else(tmp_path: Path, name: bytes):
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"c" + name + b"\n.")
    with pytest.raises(pickle.UnpicklingError, match="only numpy arrays are read"):
        read_numpy_pickle(path)


def test_arrays_of_objects_are_refused(tmp_path: Path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(pickle.dumps([{"a": np.array([{}, []], dtype=object)}], 3))
    with pytest.raises(pickle.UnpicklingError, match="dtype object: expected numbers"):
        read_numpy_pickle(path)


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


class Other:
    """Stands for a settings class that no list knows."""


def settings_of(kind: str) -> object:
    if kind == "numpy":
        return {"loss": np.float64(0.5), "rng": np.arange(3)}
    if kind == "omegaconf":
        return OmegaConf.create({"lr": 1e-4, "model": {"dim": [1, 2]}})
    if kind == "defaultdict":
        return collections.defaultdict(list, a=[1])
    return argparse.Namespace(lr=np.float32(1))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["numpy", "omegaconf", "defaultdict", "namespace"])
def test_tensors_are_kept_where_settings_beside_them_are_no_tensors(tmp_path: Path, kind: str, legacy: bool):
    path, weight = tmp_path / "a.pt", torch.arange(6.0).view(2, 3).T
    model = collections.OrderedDict(w=weight, half=torch.ones(2, dtype=torch.bfloat16), p=torch.nn.Parameter(weight))
    torch.save(
        {"model": model, "epoch": 3, "config": settings_of(kind)}, path, _use_new_zipfile_serialization=not legacy
    )
    found = load_state_dict(path)
    assert list(found["model"]) == ["w", "half", "p"]
    assert torch.equal(found["model"]["w"], weight)
    assert found["model"]["half"].dtype is torch.bfloat16
    assert kind == "defaultdict" or "config" not in found


def test_a_refused_class_is_named_without_escape_codes(tmp_path: Path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(1), "config": Other()}, path)
    with pytest.raises(
        WeightsError, match=r"a\.pt .*holds a tests\.test_weights\.Other, which could run code"
    ) as caught:
        load_state_dict(path)
    assert "\x1b" not in str(caught.value)


def test_code_beside_harmless_settings_is_refused(tmp_path: Path):
    """The second reading, which numpy's scalar brings about, runs nothing either."""
    path, victim = tmp_path / "evil.pt", tmp_path / "victim"
    torch.save({"w": torch.ones(1), "loss": np.float64(1), "then": Attack(victim)}, path)
    with pytest.raises(WeightsError, match=r"holds a (io|_io|builtins)\.open, which could run code"):
        load_state_dict(path)
    assert not victim.exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_what_is_no_checkpoint_is_called_by_its_name(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n")
    with pytest.raises(WeightsError, match="it is a Git LFS pointer, not the file itself: run `git lfs pull`"):
        load_state_dict(path)
    with pytest.raises(WeightsError, match="expected 123; it is a Git LFS pointer"):
        locate(LocalWeights(str(path), sha256="123"))
    path.write_bytes(b'\n<!DOCTYPE html>\n<html lang="en">')
    with pytest.raises(WeightsError, match="it is an HTML page, not a checkpoint"):
        load_state_dict(path)


@pytest.mark.parametrize("how", ["safetensors", "bin", "fp16", "shards", "bin-shards", "fp16-shards"])
def test_a_folder_of_save_pretrained_is_read_in_each_of_its_forms(tmp_path: Path, how: str):
    network = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    network.save_pretrained(
        tmp_path,
        safe_serialization="bin" not in how,
        variant="fp16" if "fp16" in how else None,
        max_shard_size="8KB" if "shards" in how else "1GB",
    )
    first, *shards = saved_files(tmp_path, "diffusion_pytorch_model")
    assert bool(shards) == ("shards" in how)
    state = load_state_dict(first)
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    if shards:
        shards[0].unlink()
        with pytest.raises(WeightsError, match=rf"1 of its {len(shards)} shards are not next to it: {shards[0].name}"):
            load_state_dict(first)


def test_a_folder_without_tensors_or_with_several_variants(tmp_path: Path):
    assert saved_files(tmp_path, "model") == [tmp_path / "model.safetensors"]
    for variant in ("fp16", "bf16"):
        (tmp_path / f"model.{variant}.bin").touch()
    with pytest.raises(WeightsError, match="holds model in variants bf16, fp16: keep one"):
        saved_files(tmp_path, "model")
    (tmp_path / "model.bin.index.json").write_text('{"weight_map": {"w": "../model.bin"}}')
    with pytest.raises(WeightsError, match=r"shard '\.\./model\.bin' is no name of a file next to it"):
        saved_files(tmp_path, "model")


def test_a_folder_is_taken_for_the_file_in_it(tmp_path: Path):
    assert override(HUB, str(tmp_path)) == LocalWeights(str(tmp_path / "model.pt"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_wrappers_of_names_are_left_out_with_a_note(prefix: str, caplog: pytest.LogCaptureFixture):
    state = {f"{prefix}encoder.w": torch.ones(1), f"{prefix}decoder.w": torch.ones(1)}
    assert list(find_state_dict({"model": state}, ("model",))) == ["encoder.w", "decoder.w"]
    assert repr(prefix) in caplog.text
    mixed = state | {"other": torch.ones(1)}
    assert find_state_dict(mixed) == mixed


def test_a_key_under_which_nothing_stands_is_passed_over():
    weight = torch.ones(1)
    assert find_state_dict({"ema": None, "model": {"w": weight}}, ("ema", "model")) == {"w": weight}


def test_digests_of_large_files_are_kept_for_later_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 3)
    path, small = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"large")
    small.write_bytes(b"s")
    expected = sha256(b"large").hexdigest()
    assert (sha256_of(path), sha256_of(small)) == (expected, sha256(b"s").hexdigest())
    assert list(json.loads(digests.digests_path().read_bytes())) == [str(path)]

    def later_process() -> str:
        digests._digest.cache_clear()
        return sha256_of(path)

    with monkeypatch.context() as inside:
        inside.setattr(digests, "_computed", lambda path: pytest.fail(f"{path} is read again"))
        assert later_process() == expected
    other = tmp_path / "c"
    other.write_bytes(b"LARGE")
    stat = path.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)
    assert later_process() == sha256(b"LARGE").hexdigest()
    digests.digests_path().write_text("{damaged")
    assert later_process() == sha256(b"LARGE").hexdigest()


def hub_error(kind: type[errors.HfHubHTTPError], status: int, text: str) -> Exception:
    response = httpx2.Response(status, request=httpx2.Request("HEAD", "https://huggingface.co/some-one/some-model"))
    return kind(f"{status} Client Error. (Request ID: Root=1)\n\n{text}", response=response)


GATED, GONE = "Cannot access gated repo for url X.", "Repository Not Found for url: X."
PAGE = "https://huggingface.co/some-one/some-model"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            hub_error(errors.GatedRepoError, 403, GATED),
            f"is gated: accept its terms at {PAGE}.*`hf auth login`.*{GATED}",
        ),
        (hub_error(errors.RepositoryNotFoundError, 401, GONE), f"is removed, renamed or private.*mirror.*{GONE}"),
        (hub_error(errors.RemoteEntryNotFoundError, 404, "Entry Not Found"), r"has no file model\.pt at revision 0123"),
        (hub_error(errors.RevisionNotFoundError, 404, "Revision Not Found"), "has no revision 0123"),
        (hub_error(errors.HfHubHTTPError, 401, "Invalid credentials"), "refuses the token.*Invalid credentials"),
        (hub_error(errors.HfHubHTTPError, 500, "Internal"), "the download failed.*500.*Internal"),
        (errors.LocalEntryNotFoundError("An error happened"), "no network, or the hub does not answer"),
        (OSError(28, "No space left on device"), "the download failed.*No space left"),
    ],
)
def test_the_hubs_errors_are_told_apart_and_shown_whole(offline: Path, monkeypatch, error: Exception, said: str):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "unreachable", lambda url: "")

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(MissingWeights, match=said) as caught:
        locate(HUB)
    assert "\n" not in str(caught.value)


def test_without_a_network_nothing_is_tried_twice(offline: Path, monkeypatch: pytest.MonkeyPatch):
    """One decision for all files of a host, whose address nobody answers."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("the hub is asked"))
    asked = []
    monkeypatch.setattr(hub.urllib.request, "urlopen", lambda request, timeout: asked.append(request) or refuse())

    def refuse() -> None:
        raise hub.urllib.error.URLError(ConnectionRefusedError("connection refused"))

    hub.unreachable.cache_clear()
    files = [HubWeights("some-one/some-model", f"{n} a.bin", HUB.revision) for n in range(30)]
    with pytest.raises(MissingWeights) as caught:
        locate_all(files)
    hub.unreachable.cache_clear()
    assert len(asked) == 1
    message = str(caught.value)
    assert "30 files of hub repository some-one/some-model are not here" in message
    assert "no network: 127.0.0.1:9 does not answer (connection refused)" in message
    assert "`hf download some-one/some-model '0 a.bin' '1 a.bin'" in message
    assert message.count("\n") == 1


def test_a_host_that_never_answers_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        assert hub.unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}/")
    assert time.monotonic() - started < 2


def test_offline_makes_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(hub, "unreachable", lambda url: pytest.fail("the network is asked"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("the hub is asked"))
    before = constants.HF_HUB_OFFLINE
    with weights.offline():
        assert os.environ["HF_HUB_OFFLINE"] == "1"  # for processes that are started inside
        for source in (HUB, UrlWeights("https://localhost:9/net.pth")):
            with pytest.raises(MissingWeights, match="offline=true or HF_HUB_OFFLINE is set"):
                locate(source)
    assert constants.HF_HUB_OFFLINE is before


@pytest.mark.parametrize(
    ("source", "pin"),
    [
        (HUB, "revision"),
        (HubWeights("a/b", "c"), "nothing"),
        (HubWeights("a/b", "c", sha256="0" * 64), "sha256"),
        (UrlWeights("https://a/b", "0" * 8), "8 digits of sha256"),
        (LocalWeights("a"), "your file"),
    ],
)
def test_what_holds_a_source_to_its_file(source: weights.WeightsSource, pin: str):
    assert weights.pin_of(source) == pin
