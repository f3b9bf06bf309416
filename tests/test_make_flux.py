"""FLUX-5K: prompts, seeds, a generator that resumes where it stopped, and what it leaves as a dataset."""

import shlex
from pathlib import Path

import pytest

from evals.__main__ import main
from evals.datasets.base import DatasetError, DatasetRequest
from evals.datasets.images import make_flux
from evals.datasets.registry import open_dataset
from tests import twins


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


PROMPTS = [f"a photograph of {i} cups" for i in range(6)]


def make(out: Path, generate=twins.generate, prompts=PROMPTS) -> list[int]:
    return [made.index for made in make_flux.make(prompts, make_flux.pending(prompts, out), out, generate)]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_seeds_follow_from_index_and_text():
    # A changed rule changes every image.
    assert make_flux.seed_of(0, "a cat") == 871_175_405_677_049_540  # sha256sum of "0\na cat"
    assert make_flux.seed_of(1, "a cat") != make_flux.seed_of(0, "a cat") != make_flux.seed_of(0, "a dog")


def test_making_stops_anywhere_and_resumes(tmp_path):
    assert make(tmp_path / "whole") == [0, 1, 2, 3, 4, 5]
    whole = contents(tmp_path / "whole")
    calls = []

    def dies(prompt, seed):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(prompt)
        return twins.generate(prompt, seed)

    out = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        make(out, dies)
    with open(out / "manifest.jsonl", "ab") as file:
        file.write(b'{"index": 3, "fi')  # killed in the middle of a line
    (out / "00001.png").write_bytes(b"spoiled")
    assert make(out) == [1, 3, 4, 5]
    assert make(out) == []
    after = contents(out)
    assert {n: c for n, c in after.items() if n != "manifest.jsonl"} == {
        n: c for n, c in whole.items() if n != "manifest.jsonl"
    }
    assert sorted(after["manifest.jsonl"].splitlines()) == sorted(whole["manifest.jsonl"].splitlines())


def test_a_folder_of_other_prompts_is_refused(tmp_path):
    make(tmp_path / "out")
    with pytest.raises(DatasetError, match=r"was begun with prompts_sha256="):
        make(tmp_path / "out", prompts=[*PROMPTS[:5], "another"])


def test_what_was_made_is_a_dataset_that_verifies(tmp_path, cache, capsys):
    out = twins.flux(tmp_path / "out", 6)
    dataset = open_dataset("flux-5k", DatasetRequest(cache, str(out), expect=6))
    assert [s.id for s in dataset.items] == [f"{i:05d}" for i in range(6)]
    assert any(make_flux.REVISION in note for note in dataset.notes)
    command = ["data", "verify", "flux", f"root={out}", f"out={tmp_path}", "expect=6", "workers=1"]
    assert main(command) == 0
    twins.generate("x", 1).save(out / "00002.png")
    assert main(command) == 1
    assert "00002.png: its sha256 is" in capsys.readouterr().out


def test_prompts_of_a_file_and_of_captions(tmp_path):
    (tmp_path / "p.txt").write_text("a cat \na dög\n", encoding="utf-8")
    assert make_flux.read_prompts(tmp_path / "p.txt") == ["a cat", "a dög"]
    (tmp_path / "c.json").write_bytes(twins.coco_captions())
    assert make_flux.read_prompts(tmp_path / "c.json") == [f"A photograph, number {i}." for i in range(12)]
    (tmp_path / "e.txt").write_text("a cat\n\na dog\n")
    with pytest.raises(DatasetError, match="line 2 is empty"):
        make_flux.read_prompts(tmp_path / "e.txt")


def test_make_flux_without_weights_or_gpu_says_both(tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "p.txt").write_text("a cat\n")
    assert main(["data", "make-flux", f"prompts={tmp_path / 'p.txt'}", f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert "a CUDA device" in error
    assert f"hf download black-forest-labs/FLUX.1-dev --revision {make_flux.REVISION}" in error
    assert error.count("error:") == 1


def test_the_command_that_gets_the_weights_gets_all_but_two_files(monkeypatch):
    """By hf's own parser: a second name behind one --exclude would be the only file that is downloaded."""
    from huggingface_hub.cli import download, hf

    asked = {}
    monkeypatch.setattr(download, "hf_hub_download", lambda **_: pytest.fail("one file is downloaded"))
    monkeypatch.setattr(download, "snapshot_download", lambda **given: asked.update(given) or "folder")
    words = shlex.split(make_flux._get(make_flux.settings_for(["a cat"])))
    assert words[0] == "hf"
    hf.app.main(words[1:], prog_name="hf", standalone_mode=False)
    assert asked["ignore_patterns"] == ["flux1-dev.safetensors", "ae.safetensors"]
    assert not asked["allow_patterns"]
    assert asked["revision"] == make_flux.REVISION
