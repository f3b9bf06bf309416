"""The benchmark of the tokenizers' speed runs in miniature; its figures fit together and count what must be counted."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import coding, measuring
from benchmarks import tokenizers as benchmark
from benchmarks.tokenizer_networks import QUICK_LACTOK, QUICK_TITOK, TOKENIZERS, decode_flops
from lactok.models.lactok import LacTokConfig
from lactok.weights import MissingWeights
from tests.support import ROOT

CPU = torch.device("cpu")
QUICK = measuring.Settings(device=CPU, precision="fp32", compile=False, quick=True, seconds=0.0)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the command writes; run as a script, whose folder holds a file called as a package that others import."""
    path = tmp_path_factory.mktemp("speed") / "speed.json"
    script = str(ROOT / "benchmarks" / "tokenizers.py")
    arguments = ["--quick", "--threads", "1", "--device", "cpu", "--tokenizers", "llamagen,titok", "--json", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("llamagen", "titok", "matrix rate", "GFLOPs/image", "1 thread;", "torch "):
        assert word in done.stdout
    return json.loads(path.read_text())


def test_figures_are_positive_and_fit_together(record: dict):
    rows, rate = record["rows"], record["machine"]["matrix_flops_per_second"]
    assert [(row["tokenizer"], row["part"]) for row in rows] == [
        (name, part) for name in ("llamagen", "titok") for part in ("encode", "decode")
    ]
    for row in rows:
        assert min(row["flops_per_image"], row["images_per_second"], row["calls"], rate) > 0
        assert row["images_per_second"] * row["flops_per_image"] / rate == pytest.approx(row["share"], rel=1e-9)
        assert row["batch"] == 1
        assert row["peak_bytes"] is row["peak_bytes_one"] is None  # torch counts a GPU's memory, not the CPU's
    assert (record["machine"]["threads"], record["machine"]["quick"]) == (1, True)
    assert record["not_measured"] == {}


def test_attention_is_counted(record: dict):
    """TiTok's encoder by hand: patches, blocks (12 W^2 a token, attention 2 T^2 W), the last layer, the search."""
    config, (width, depth, _) = QUICK_TITOK, QUICK_TITOK.vit_enc_model_size
    patches, latents = (config.image_size // config.vit_enc_patch_size) ** 2, config.num_latent_tokens
    tokens = 1 + patches + latents
    products = patches * 3 * config.vit_enc_patch_size**2 * width
    products += depth * (12 * width**2 * tokens + 2 * tokens**2 * width)
    products += latents * config.token_size * (width + config.codebook_size)
    (row,) = [row for row in record["rows"] if (row["tokenizer"], row["part"]) == ("titok", "encode")]
    assert row["flops_per_image"] == 2 * products


def test_the_count_does_not_depend_on_the_precision(record: dict):
    rows = benchmark.measure("titok", ("encode",), dataclasses.replace(QUICK, precision="bf16"), rate=1e9)
    (plain,) = [row for row in record["rows"] if (row["tokenizer"], row["part"]) == ("titok", "encode")]
    assert rows[0].flops_per_image == plain["flops_per_image"]


@pytest.mark.parametrize("name", ["flextok", "sdxl-vae", "seedtok", "lactok-t"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_others_run_too(name: str, precision: str):
    rows = benchmark.measure(name, ("decode",), dataclasses.replace(QUICK, precision=precision), rate=1e9)
    assert [row.part for row in rows] == ["decode"]
    assert rows[0].share == pytest.approx(rows[0].images_per_second * rows[0].flops_per_image / 1e9)


@pytest.mark.parametrize("name", ["titok", "lactok-h"])
def test_all_that_compiles_has_a_forward_that_runs(name: str):
    """A network that is never called by its forward would be timed uncompiled without a word."""
    subject = TOKENIZERS[name](True, CPU)
    called = []
    for network in subject.networks:
        network.register_forward_hook(lambda module, *_: called.append(module))
    codes = subject.tokenizer.encode(torch.zeros(1, 3, subject.side, subject.side))
    subject.tokenizer.decode(codes, [0])
    assert called == list(subject.networks)


@pytest.mark.parametrize(("name", "evaluations"), [("lactok-h", 1), ("lactok-t", 2)])
def test_what_lactok_decodes_is_what_the_meta_device_counts(name: str, evaluations: int):
    subject = TOKENIZERS[name](True, CPU)
    info = subject.tokenizer.info
    count = decode_flops(QUICK_LACTOK, info.output_size, subject.side // QUICK_LACTOK.vq.downsample_factor)
    assert min(count.unet, count.copy, count.autoencoder) > 0
    assert coding.Work(subject, QUICK).flops("decode") == count.image(evaluations)


def test_lactok_at_real_size_costs_what_is_documented():
    count = decode_flops(LacTokConfig(), side=1024, codes_side=16)
    assert count.unet / 1e12 == pytest.approx(6.76, rel=0.01)
    assert count.copy / 1e12 == pytest.approx(3.00, rel=0.01)
    assert count.autoencoder / 1e12 == pytest.approx(10.47, rel=0.01)
    assert [round(count.image(n) / 1e12, 1) for n in (1, 2)] == [20.2, 30.0]


def test_peak_memory_is_that_of_one_call(monkeypatch: pytest.MonkeyPatch):
    """On a made-up GPU: the count starts anew before the call and is read once the device is done."""
    did = []
    for name in ("synchronize", "reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: did.append(name) or 7)
    assert measuring.peak_bytes(lambda: did.append("call"), torch.device("cuda")) == 7
    assert did == ["synchronize", "reset_peak_memory_stats", "call", "synchronize", "max_memory_allocated"]
    assert measuring.peak_bytes(lambda: did.append("again"), CPU) is None
    assert "again" not in did


def test_the_search_ends_where_doubling_does_not_pay(monkeypatch: pytest.MonkeyPatch):
    """A device that takes 1 s for up to 4 images, and more for more; then one whose memory ends at 4."""
    work = coding.Work(TOKENIZERS["titok"](True, CPU), QUICK)
    monkeypatch.setattr(work, "call", lambda part, batch: batch)
    monkeypatch.setattr(coding, "call_times", lambda batch, device, seconds: [max(1.0, batch / 4)])
    best, why = work.best_batch("encode")
    assert best == 4
    assert why == "8 gives 4 images/s, 4 gives 4, not compiled"
    assert work.best_batch("encode", largest=2) == (2, "2 is the largest that is tried")
    monkeypatch.setattr(coding, "call_times", lambda batch, device, seconds: [5.0])
    assert work.best_batch("encode") == (1, "a call of 1 takes 5.0 s, longer ones are not tried")
    monkeypatch.setattr(coding, "call_times", lambda batch, device, seconds: [max(1.0, batch / 4)])

    def call(part: str, batch: int) -> int:
        if batch > 2:
            raise torch.OutOfMemoryError("no memory is left\nmore of it")
        return batch

    monkeypatch.setattr(work, "call", call)
    assert work.best_batch("encode") == (2, "4 does not fit: no memory is left")


def test_what_could_not_be_measured_is_said(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path):
    def missing(quick: bool, device: torch.device) -> None:
        raise MissingWeights("needs the package transformers")

    monkeypatch.setitem(TOKENIZERS, "seedtok", missing)
    path = tmp_path / "speed.json"
    arguments = ["--quick", "--device", "cpu", "--tokenizers", "seedtok", "--json", str(path)]
    assert benchmark.main(arguments) == 1
    assert "seedtok: NOT MEASURED: needs the package transformers" in capsys.readouterr().out
    assert json.loads(path.read_text())["not_measured"] == {"seedtok": "needs the package transformers"}


def test_a_name_that_is_not_known(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--tokenizers", "titok,lamagen"])
    assert "lamagen not known; known: llamagen, titok" in capsys.readouterr().err
