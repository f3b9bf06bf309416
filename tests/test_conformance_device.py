"""Golden cases on another device than the CPU: every port follows its case there, and the command names the device.

Where no GPU is, tensors without memory stand in for a GPU's (torch's fake tensors): they check no value, but refuse an
operation on tensors of two devices, which is how a port that leaves something on the CPU fails on a GPU.
"""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from baselines.generators.hart import conformance as hart
from baselines.generators.showo import conformance as showo
from baselines.tokenizers.flextok import conformance as flextok
from baselines.tokenizers.llamagen import conformance as llamagen
from baselines.tokenizers.seedtok import conformance as seedtok
from baselines.tokenizers.titok import conformance as titok
from evals.cli.conformance import main, targets
from evals.metrics import conformance as metrics
from evals.metrics.judges import conformance as judges
from evals.metrics.judges.geneval import conformance as geneval
from lactok import registry
from lactok.conformance import CaseFolder, CheckLine, compare_floats, compare_ids
from lactok.feature_extractors import inception
from lactok.generators import conformance as gpt
from lactok.models.quantizer import VectorQuantizer
from lactok.seeded import Manifest
from lactok.tokenizers import conformance as lactok

GOLDEN = Path(__file__).parent / "golden"
RUNNERS = (flextok, llamagen, seedtok, titok, metrics, judges, geneval, lactok, gpt, showo, hart)
real_inception = inception.build
FAKE_CUDA = torch.device("cuda")


class FakeCase(CaseFolder):
    """A case whose files are read as they are, before its tensors become fake ones."""

    def __getitem__(self, name: str) -> Tensor:
        with unset_fake_temporarily():
            stored = CaseFolder(self.path)[name]
        return stored.to(self.device)

    def seeded(self, manifest: Manifest, seed: int) -> dict[str, Tensor]:
        with unset_fake_temporarily():
            state = CaseFolder(self.path).seeded(manifest, seed)
        return {name: value.to(self.device) for name, value in state.items()}


def read_whole(path: Path, device: str) -> dict[str, Tensor]:
    with unset_fake_temporarily():
        stored = load_file(path)
    return {name: value.to(device) for name, value in stored.items()}


def moved(module: nn.Module, device: torch.device | None = None, **_: object) -> nn.Module:
    """`nn.Module.to`: torch refuses to change a fake parameter in place."""
    for part in module.modules() if device else ():
        for name, value in part.named_parameters(recurse=False):
            part._parameters[name] = nn.Parameter(value.to(device), requires_grad=False)
        for name, value in part.named_buffers(recurse=False):
            part._buffers[name] = value.to(device)
    return module


def inception_of(weights: dict[str, Tensor], device: torch.device, features: list[str]) -> nn.Module:
    """The real network, which is built from a file, with any values."""
    with unset_fake_temporarily():
        network = real_inception({name: torch.ones(value.shape) for name, value in weights.items()}, features=features)
    return moved(network, device)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where each compared result lay: comparisons, which need values, only note it."""
    devices: list[str] = []

    def note(name: str, got: Tensor, *_: object, **__: object) -> CheckLine:
        devices.append(got.device.type)
        return CheckLine(name, 0.0, 0.0, None, True)

    def number(value: object) -> float:
        if not isinstance(value, FakeTensor):
            return builtins.float(value)
        devices.append(value.device.type)
        return 0.0

    for runner in RUNNERS:
        for name in ("compare_floats", "compare_ids"):
            if hasattr(runner, name):
                monkeypatch.setattr(runner, name, note)
    monkeypatch.setattr(metrics, "float", number, raising=False)
    # what needs values, and is done on the CPU
    monkeypatch.setattr(llamagen, "_preprocess_lines", lambda case: iter(()))
    monkeypatch.setattr(metrics, "_set_lines", lambda entry, note: iter(()))
    monkeypatch.setattr(inception, "build", inception_of)
    monkeypatch.setattr(metrics, "pooled_psnr", lambda errors: 0.0)
    monkeypatch.setattr("lactok.models.quantizer.require_finite", lambda vectors, what: None)
    monkeypatch.setattr("baselines.tokenizers.flextok.model.require_finite", lambda vectors, what: None)
    monkeypatch.setattr(VectorQuantizer, "_record", lambda quantizer, ids: 0.0)
    monkeypatch.setattr(showo, "_is_close", lambda gap, step: False)
    monkeypatch.setattr("baselines.generators.hart.state_dict.torch.equal", lambda a, b: True)
    monkeypatch.setattr("transformers.PreTrainedModel.init_weights", lambda network: None)
    monkeypatch.setattr(seedtok, "load_file", read_whole)
    monkeypatch.setattr(nn.Module, "to", moved)
    return devices


LARGE = {"lactok"}  # takes as long as all others together


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in sorted(registry.entries("conformance"))],
)
def test_a_port_keeps_everything_on_its_case_s_device(name: str, seen: list[str]):
    (case,) = (t.path for t in targets(GOLDEN / name) if t.path.name == "tiny")
    with FakeTensorMode(allow_non_fake_inputs=True):
        lines = list(registry.load("conformance", name)(FakeCase(case, FAKE_CUDA)))
    assert lines
    assert [line for line in lines if not line.passed and not line.tensor.startswith("preprocess")] == []
    assert "cuda" in seen, "nothing that was compared had been on the device"


def test_a_port_that_leaves_its_network_behind_is_found(seen: list[str], monkeypatch: pytest.MonkeyPatch):
    """The check above can fail: here weights stay on the CPU."""
    monkeypatch.setattr(FakeCase, "seeded", lambda case, manifest, seed: CaseFolder(case.path).seeded(manifest, seed))
    monkeypatch.setattr(nn.Module, "to", lambda module, *_, **__: module)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises(RuntimeError, match=r"two devices|different from other tensors"),
    ):
        list(titok.run(FakeCase(GOLDEN / "titok" / "tiny", FAKE_CUDA)))


def test_results_are_compared_on_the_cpu():
    """Wherever they lie; shown with fakes, which tell a comparison's devices apart but have no values."""
    with FakeTensorMode():
        floats = torch.ones(2, device=FAKE_CUDA)
        for compare in (
            lambda: compare_floats("x", floats, floats),
            lambda: compare_ids("x", floats.long(), floats.long(), floats),
        ):
            with pytest.raises(RuntimeError) as caught:
                compare()
            assert "device" not in str(caught.value)


def test_the_command_names_the_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    devices: list[torch.device] = []

    def run(case: CaseFolder):
        devices.append(case.device)
        assert torch.backends.cudnn.allow_tf32 is False
        assert torch.get_float32_matmul_precision() == "highest"
        yield CheckLine("x", 0.0, 0.0, None, True)

    monkeypatch.setattr(registry, "load", lambda group, name: run)
    case = str(GOLDEN / "titok" / "tiny")
    before = torch.backends.cudnn.allow_tf32
    assert main([case]) == main(["device=cpu", case]) == 0
    assert devices == [torch.device("cpu")] * 2
    assert torch.backends.cudnn.allow_tf32 is before
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for named, reason in (("cuda", "sees no CUDA device"), ("tpu", "expected auto, cpu, cuda or cuda:N")):
        with pytest.raises(SystemExit) as caught:
            main([case, f"device={named}"])
        assert caught.value.code == 2
        assert reason in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([case, "device=cpu", "device=cuda"])
    assert "expected one" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", sorted(registry.entries("conformance")))
def test_golden_cases_on_cuda(name: str, capsys: pytest.CaptureFixture[str]):
    assert main([str(GOLDEN / name), "device=cuda"]) == 0, capsys.readouterr().out
