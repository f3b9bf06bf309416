"""What a plugin does to its process ends with the call: other rows, the store and the run are not touched."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from evals.engine.isolation import isolated
from evals.engine.rows import Wanted, resolve_rows
from lactok import registry
from lactok.interface import Tokenizer
from tests.commands import evals
from tests.plugin_runs import plugin, rows, run
from tests.support import TOY, install_plugin, pictures, table, the_run

RUDE = (
    TOY
    + """
import asyncio, os, random, sys, tempfile
import numpy

def rude():
    b = torch.backends
    b.mkldnn.conv.fp32_precision = b.mkldnn.matmul.fp32_precision = "bf16"
    b.fp32_precision = "tf32"
    b.cuda.matmul.allow_tf32 = True
    b.cudnn.conv.fp32_precision = "ieee"
    b.cudnn.benchmark = b.cudnn.deterministic = True
    b.mkldnn.deterministic = True
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_grad_enabled(not torch.is_grad_enabled())
    torch.set_autocast_enabled("cpu", not torch.is_autocast_enabled("cpu"))
    os.chdir(tempfile.gettempdir())
    torch.manual_seed(5), random.seed(5), numpy.random.seed(5)

class Rude(Toy):
    def __init__(self, options, device):
        super().__init__(options, device)
        rude()

    @property
    def info(self):
        info = super().info
        rude()
        return info

    def encode(self, images):
        tokens = super().encode(images)
        rude()
        return tokens

    def decode(self, encoded, seeds):
        images = super().decode(encoded, seeds).float()
        rude()
        return images

class ExitsWhenBuilt(Toy):
    def __init__(self, options, device):
        sys.exit()

class ExitsInInfo(Toy):
    @property
    def info(self):
        sys.exit(0)

class ExitsInEncode(Toy):
    def encode(self, images):
        sys.exit("no licence")

class Cancelled(Toy):
    def decode(self, encoded, seeds):
        raise asyncio.CancelledError("cancelled")

class ExitsInWeights(Toy):
    @classmethod
    def weights(cls, options):
        sys.exit()

"""
)
EXITS = {
    "exits-when-built": "ExitsWhenBuilt", "exits-in-info": "ExitsInInfo", "exits-in-encode": "ExitsInEncode",
    "exits-in-weights": "ExitsInWeights", "cancelled": "Cancelled",
}  # fmt: skip
METRICS = "metrics=[psnr,ssim,effnet,fd-effnet]"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), 20)


def state() -> dict[str, object]:
    """All that `rude` changes, as code that runs after it would see it."""
    b = torch.backends
    return {
        "precision": [
            m.fp32_precision for m in (b, b.cudnn, b.cudnn.conv, b.cudnn.rnn, b.cuda.matmul, b.mkldnn, b.mkldnn.conv,
                                       b.mkldnn.matmul, b.mkldnn.rnn)
        ],
        "legacy": (torch.get_float32_matmul_precision(), b.cudnn.allow_tf32, b.cuda.matmul.allow_tf32),
        "modes": (b.cudnn.benchmark, b.cudnn.deterministic, b.mkldnn.deterministic),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "device": torch.get_default_device(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "folder": os.getcwd(),
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
    }  # fmt: skip


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_all_settings_are_as_before_the_call(tmp_path: Path, mode: type):
    with plugin(tmp_path, RUDE, {"rude": "Rude"}) as module, mode():
        torch.set_float32_matmul_precision("highest")  # the state that the engine itself leaves behind
        before = state()
        with isolated():
            module.rude()
            torch.inference_mode(not torch.is_inference_mode_enabled()).__enter__()
        assert state() == before


def test_settings_are_as_before_after_an_error_too(tmp_path: Path):
    with plugin(tmp_path, RUDE, {"rude": "Rude"}) as module:
        torch.set_float32_matmul_precision("highest")
        before = state()

        def call() -> None:
            module.rude()
            raise KeyError("x")

        with pytest.raises(KeyError), isolated():
            call()
        assert state() == before


def test_ctrl_c_passes():
    with pytest.raises(KeyboardInterrupt), isolated():
        raise KeyboardInterrupt


def test_isolation_costs_less_than_a_millisecond():
    took = []
    for _ in range(200):
        started = time.perf_counter()
        with isolated():
            pass
        took.append(time.perf_counter() - started)
    assert sorted(took)[100] < 1e-3


def test_a_rude_plugin_moves_no_other_row(tmp_path: Path, data: Path):
    """As users run it: relative folder of the store, and rows after the rude one in one group."""
    names = {"toy": "Toy", "a-rude": "Rude"}
    folder = install_plugin(tmp_path / "plugin", "testplugin", RUDE, names)
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    common = ["dataset=folder", f"dataset.root='{data}'", METRICS]
    for out, wanted in ((alone, "[toy,llamagen]"), (beside, "[a-rude,toy,llamagen]")):
        relative = os.path.relpath(out, Path(__file__).resolve().parent.parent)
        done = evals(*common, f"tokenizers={wanted}", f"out='{relative}'", plugins=(folder,))
        assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in beside.iterdir()) == ["cache", "runs"]
    want, found = table(alone), table(beside)
    assert found.loc["a-rude", "PSNR"] == found.loc["toy", "PSNR"]
    assert found.drop(index="a-rude").equals(want)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_plugin_that_exits_fails_its_row_and_no_more(tmp_path: Path, data: Path, ranks: int):
    with plugin(tmp_path / "plugin", RUDE, {"toy": "Toy", **EXITS}):
        names = ",".join(["toy", *EXITS])
        found = rows(run(data, tmp_path / "out", f"tokenizers=[{names}]", "metrics=[psnr]", ranks=ranks))
    assert found["toy"].status == "ok"
    for name in EXITS:
        assert found[name].status == "failed", name
    assert "sys.exit" in found["exits-when-built"].error
    assert "no licence" in found["exits-in-encode"].error
    assert "CancelledError" in found["cancelled"].error


def test_the_exit_status_tells_of_a_plugin_that_exits(tmp_path: Path, data: Path):
    folder = install_plugin(tmp_path / "plugin", "testplugin", RUDE, {"exits": "ExitsWhenBuilt", "toy": "Toy"})
    out = tmp_path / "out"
    done = evals(
        "tokenizers=[exits,toy]", "metrics=[psnr]", "dataset=folder", f"dataset.root='{data}'", f"out='{out}'",
        plugins=(folder,),
    )  # fmt: skip
    assert done.returncode == 1
    assert "exits (failed)" in done.stderr
    assert (the_run(out) / "table.csv").is_file()


def test_what_a_plugin_sets_when_it_is_imported_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = RUDE + "\nrude()\nloaded = True\n"
    monkeypatch.syspath_prepend(str(install_plugin(tmp_path, "rudeimport", source, {"toy": "Toy"})))
    registry.entries.cache_clear()
    torch.set_float32_matmul_precision("highest")
    before = state()
    try:
        (row,) = resolve_rows(Wanted("tokenizers", "toy", "mini", False, {}, (Tokenizer,)))
        assert row.cls.__module__ == "rudeimport"
        assert state() == before
    finally:
        registry.entries.cache_clear()
