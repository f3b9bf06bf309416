"""Judges by their published packages: the protocol, what is missing, the installation, and agreement with the ports."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from skimage import data
from torch import Tensor

from evals.cli.judges import main
from evals.config import ConfigError, compose_config
from evals.engine import missing
from evals.engine.job import Artifact
from evals.metrics.judges.geneval.metric import GenEval
from evals.metrics.judges.image_reward import ImageReward
from evals.metrics.judges.original import environments
from evals.metrics.judges.original.environments import ENVIRONMENTS, InstallError, install, pip_command, python_of
from evals.metrics.judges.original.judges import OriginalDetector, OriginalImageReward
from evals.metrics.judges.original.process import OriginalError, OriginalProcess
from evals.metrics.plan import identity, metric_class
from evals.tasks.protocol import GenerationProtocol
from lactok.conformance import CaseFolder
from lactok.seeded import TensorSpec, seeded_state_dict
from lactok.weights import LocalWeights, MissingWeights, WeightsError
from tests.judge_support import WORDS, items, noise

GOLDEN = Path(__file__).parent / "golden"
CPU = torch.device("cpu")
ORIGINAL = GenerationProtocol("test", judges="original")
# Answers as worker.py does, without a package: the sum of pixels and the prompt's length; loading counts.
FAKE = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from safetensors.numpy import load_file, save_file
import numpy as np
scale, loads = 0.0, 0
for line in sys.stdin:
    request = json.loads(line)
    answer = {}
    print("a package that chats on stdout")
    if request["do"] == "load":
        scale, loads = load_file(request["tensors"])["scale"].item(), loads + 1
        answer = {"versions": {"fake": request["vocabulary"]}}
    elif request["prompts"] == ["die"]:
        print("Segmentation fault, says the package", file=sys.stderr, flush=True)
        os._exit(7)
    elif request["prompts"] == ["fail"]:
        answer = {"error": "TypeError: no such prompt"}
    elif request["prompts"] == ["chat"]:
        print("hello", file=answers, flush=True)
        continue
    else:
        images = load_file(request["tensors"])
        sums = [float(images[str(n)].sum(dtype=np.float64)) for n in range(len(images))]
        values = [scale * s + len(p) + 1000000 * (loads - 1) for s, p in zip(sums, request["prompts"])]
        save_file({"scores": np.array(values)}, request["answer"])
    print(json.dumps(answer), file=answers, flush=True)
"""


@pytest.fixture
def fake(tmp_path: Path) -> OriginalProcess:
    (tmp_path / "fake.py").write_text(FAKE)
    return OriginalProcess("fake", Path(sys.executable), tmp_path / "fake.py")


# --- the protocol ----------------------------------------------------------------------------------------------------


def test_batches_go_in_and_scores_come_out_of_one_process(fake: OriginalProcess):
    assert fake.load({"scale": torch.tensor(0.5)}, CPU, vocabulary="1.0") == {"fake": "1.0"}
    judge = OriginalImageReward(fake)
    images = noise(3, 20, 30)
    prompts = ["a", "bc", "café ☕\nline"]
    for count in (3, 1):  # of a second batch, too: the network was loaded once
        found = judge.score(None, judge.embed(images[:count], ()), items(prompts[:count]))["ImageReward"]
        want = [0.5 * images[n].double().sum().item() + len(prompts[n]) for n in range(count)]
        assert found.tolist() == want
        assert found.dtype == torch.float64
    with pytest.raises(ValueError, match="item 0 has no prompt"):
        judge.score(None, images[:1], items([""]))
    fake.close()


def test_an_error_of_the_package_is_told_and_the_process_lives(fake: OriginalProcess):
    with pytest.raises(OriginalError, match="the package fake failed: TypeError: no such prompt"):
        fake.score(list(noise(1, 8, 8)), prompts=["fail"])
    assert fake.score(list(noise(1, 8, 8)), prompts=["a"])["scores"].shape == (1,)
    with pytest.raises(OriginalError, match="answered 'hello', expected a line of JSON"):
        fake.score(list(noise(1, 8, 8)), prompts=["chat"])


def test_a_crash_names_the_last_lines_of_stderr(fake: OriginalProcess):
    with pytest.raises(OriginalError, match=r"process of fake ended \(exit status 7\)(.|\n)*Segmentation fault, says"):
        fake.score(list(noise(1, 8, 8)), prompts=["die"])
    with pytest.raises(OriginalError, match=r"exit status 7"):  # nor does it hang the next time
        fake.score(list(noise(1, 8, 8)), prompts=["a"])


def test_the_worker_says_which_package_is_missing():
    """This Python has neither package."""
    process = OriginalProcess("mmdet", Path(sys.executable))
    with pytest.raises(OriginalError, match="the package mmdet failed: ModuleNotFoundError: No module named 'mmdet'"):
        process.versions()


def test_instances_are_sorted_and_cut(monkeypatch: pytest.MonkeyPatch):
    answer = {
        "0.labels": torch.tensor([3, 1, 2]),
        "0.scores": torch.tensor([0.2, 0.9, 0.5]),
        "0.boxes": torch.arange(12.0).view(3, 4),
        "0.masks": torch.tensor([1, 0, 1], dtype=torch.uint8)[:, None, None].expand(3, 4, 5),
    }
    detector = OriginalDetector.__new__(OriginalDetector)
    detector.process = type("Fake", (), {"score": lambda self, images: answer})()
    (found,) = detector(noise(1, 4, 5), above=0.2)  # 0.2 itself is not above
    assert found.labels.tolist() == [1, 2]
    assert found.boxes[:, 0].tolist() == [4, 8]
    assert found.masks.dtype == torch.bool
    assert found.masks.any(dim=(1, 2)).tolist() == [False, True]


# --- settings and keys -----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of ~/.cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


def complete(name: str, versions: dict[str, str]) -> None:
    """An environment that says of itself that it is complete."""
    environment = ENVIRONMENTS[name]
    python_of(environment.folder).parent.mkdir(parents=True, exist_ok=True)
    python_of(environment.folder).touch()
    (environment.folder / "environment.json").write_text(json.dumps({"pins": environment.pins, "versions": versions}))


@pytest.mark.parametrize(("name", "package"), [("imagereward", "image-reward"), ("geneval", "mmdet")])
def test_a_missing_environment_is_told_with_its_command(cache: Path, name: str, package: str):
    with pytest.raises(MissingWeights, match=f"run `python -m evals judges install {package}`") as error:
        identity(metric_class(name), ORIGINAL)
    assert str(cache / "lactok" / "judges" / package) in str(error.value)
    assert "hf download" in str(error.value) or "curl -L" in str(error.value)  # its files, in the same message
    complete(package, {})
    file = ENVIRONMENTS[package].folder / "environment.json"
    file.write_text(json.dumps({"pins": "of other versions"}))
    with pytest.raises(MissingWeights, match="is not complete"):
        ENVIRONMENTS[package].require()


@pytest.mark.parametrize("name", ["mps", "mps-fp16", "hpsv2-2.0", "hpsv2-2.1"])
def test_a_judge_without_a_package_is_no_port_instead(name: str):
    with pytest.raises(WeightsError, match=r"judges\.backend=original: this judge's package is not among those"):
        identity(metric_class(name), ORIGINAL)


def test_keys_hold_the_backend_and_its_versions(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "weights").write_bytes(b"1")
    monkeypatch.setattr(ImageReward, "weights", classmethod(lambda cls: (LocalWeights(str(tmp_path / "weights")),)))
    ported = identity(ImageReward, GenerationProtocol("test"))
    assert ported["protocol"] == {}  # stored results of before keep their keys
    keys = {Artifact("metric", ported).key}
    for version in ("4.55.4", "4.50.0"):
        complete("image-reward", {"transformers": version})
        found = identity(ImageReward, ORIGINAL)
        assert found["protocol"] == {"judges": "original"}
        keys.add(Artifact("metric", found).key)
    assert len(keys) == 3


def test_the_protocol_of_a_run_holds_the_backend():
    usual = compose_config(["suite=geneval"]).make_protocol()
    original = compose_config(["suite=geneval", "judges.backend=original"]).make_protocol()
    assert usual.hash == GenerationProtocol("x").hash
    assert usual.hash != original.hash
    assert original.name == "as-generated with judges=original"
    with pytest.raises(ConfigError, match=r"judges\.backend=theirs: expected ported or original"):
        compose_config(["suite=geneval", "judges.backend=theirs"])
    with pytest.raises(ConfigError, match="is of images of prompts, and suite=recon has none"):
        compose_config(["judges.backend=original"])


def test_a_run_of_the_papers_scale_lists_what_the_backend_lacks(cache: Path):
    lines = missing._of_metrics([compose_config(["suite=geneval", "scale=paper", "judges.backend=original"])])
    assert any(line.startswith("metric geneval: the environment of the package mmdet is not here") for line in lines)
    assert any("743b7d99.pth" in line for line in lines)
    usual = missing._of_metrics([compose_config(["suite=geneval", "scale=paper"])])
    assert not any("environment" in line for line in usual)


def test_the_backend_chooses_who_builds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(OriginalImageReward, "build", classmethod(lambda cls, device, settings: "theirs"))
    assert ImageReward.build(CPU, {"judges": "original"}) == "theirs"
    monkeypatch.setattr("evals.metrics.judges.geneval.metric.locate_all", lambda sources: [])
    monkeypatch.setattr("evals.metrics.judges.geneval.colours.load", lambda device: None)
    monkeypatch.setattr("evals.metrics.judges.geneval.metric.ColourClassifier", lambda clip: "colours")
    monkeypatch.setattr(OriginalDetector, "build", classmethod(lambda cls, device: "theirs"))
    assert GenEval.build(CPU, {"judges": "original"}).detector == "theirs"


# --- installation ----------------------------------------------------------------------------------------------------


class Pip:
    """In the place of processes: makes what `python -m venv` would, and notes the commands. fails: at the n-th."""

    def __init__(self, fails: int | None = None) -> None:
        self.commands: list[list[str]] = []
        self.fails = fails

    def __call__(self, command: list[str], tell) -> int:
        self.commands.append(command)
        if len(self.commands) == self.fails:
            tell("ERROR: Could not find a version that satisfies the requirement mmdet==3.3.0")
            return 1
        if "venv" in command:
            folder = Path(command[-1])
            python_of(folder).parent.mkdir(parents=True)
            python_of(folder).touch()
            (folder / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
        return 0


def versions(name: str, python: Path) -> dict[str, str]:
    return {"mmdet": "3.3.0"}


def test_an_installation_pins_everything_and_borrows_torch(cache: Path, capsys):
    environment, pip = ENVIRONMENTS["mmdet"], Pip()
    place = install(environment, versions=versions, run=pip)
    assert place == cache / "lactok" / "judges" / "mmdet"
    assert pip.commands == [
        [sys.executable, "-m", "venv", str(place)],
        pip_command(place, environment.requirements),
    ]
    assert pip.commands[1][:4] == [str(place / "bin" / "python"), "-m", "pip", "install"]
    assert "--no-deps" in pip.commands[1]
    assert {"mmdet==3.3.0", "mmengine==0.10.7", "mmcv-lite==2.1.0", "numpy==1.26.4"} <= set(pip.commands[1])
    assert {"image-reward==1.5", "transformers==4.55.4", "timm==0.6.13"} <= set(
        ENVIRONMENTS["image-reward"].requirements
    )
    assert all("==" in one and not one.startswith("torch") for e in ENVIRONMENTS.values() for one in e.requirements)
    (borrowed,) = place.glob("lib/*/site-packages/*.pth")
    assert (Path(borrowed.read_text().strip()) / "torch").is_dir()
    assert environment.require() == place / "bin" / "python"
    assert environment.identity()["versions"] == {"mmdet": "3.3.0"}
    told = capsys.readouterr().err
    assert "about 490 MB" in told.splitlines()[0]
    assert "step 2 of 3" in told
    again = Pip()
    install(environment, versions=versions, run=again)
    assert again.commands == []
    assert "complete" in capsys.readouterr().err


def test_a_failed_installation_says_which_step_and_goes_on(cache: Path):
    environment = ENVIRONMENTS["mmdet"]
    with pytest.raises(
        InstallError, match=r"step 2 of mmdet failed(.|\n)*Could not find a version(.|\n)*goes on"
    ) as told:
        install(environment, versions=versions, run=Pip(fails=2))
    assert "pip install" in str(told.value)
    with pytest.raises(MissingWeights, match="is not complete"):
        environment.require()

    def broken(name: str, python: Path) -> dict[str, str]:
        raise OriginalError("the package mmdet failed: ImportError: libGL.so.1")

    rest = Pip()
    with pytest.raises(InstallError, match=r"can't be imported: .*libGL\.so\.1"):
        install(environment, versions=broken, run=rest)
    assert len(rest.commands) == 1  # the virtual environment is there
    with pytest.raises(MissingWeights, match="is not complete"):
        environment.require()
    install(environment, versions=versions, run=Pip())
    assert environment.require().is_file()


def test_a_cache_behind_a_link_is_installed_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """~/.cache on a cluster often leads to scratch."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "link"))
    place = install(ENVIRONMENTS["mmdet"], versions=versions, run=Pip())
    assert place.resolve().is_relative_to(tmp_path / "real")
    assert not place.is_symlink()


def test_another_folder_is_linked(cache: Path, tmp_path: Path):
    install(ENVIRONMENTS["mmdet"], tmp_path / "big" / "mmdet", versions, Pip())
    assert ENVIRONMENTS["mmdet"].folder.resolve() == tmp_path / "big" / "mmdet"
    assert ENVIRONMENTS["mmdet"].require().is_file()
    again = Pip()
    install(ENVIRONMENTS["mmdet"], versions=versions, run=again)
    assert again.commands == []


def test_a_full_disk_is_told_before_anything_is_made(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environments.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10_000_000})())
    pip = Pip()
    with pytest.raises(
        InstallError, match=r"needs about 490 MB, and 10 MB are free .* or name another folder by --dir"
    ):
        install(ENVIRONMENTS["mmdet"], versions=versions, run=pip)
    assert pip.commands == []


def test_the_command_line_of_the_installation(capsys):
    assert main(["install", "--help"]) == 0
    told = capsys.readouterr().out
    assert "python -m evals judges install mmdet" in told
    assert "judges.backend=original" in told
    assert main(["install", "mmpose"]) == 2
    assert "image-reward" in capsys.readouterr().err


# --- agreement: pytest -m slow ---------------------------------------------------------------------------------------


def environment_or_skip(name: str) -> None:
    try:
        ENVIRONMENTS[name].require()
    except MissingWeights as error:
        pytest.skip(str(error))


def seeded(entries: dict[str, TensorSpec]) -> dict[str, Tensor]:
    return seeded_state_dict(entries, 0)


def photographs() -> list[Tensor]:
    """Cuts of two photographs, uint8 (3, H, W)."""
    cuts = data.coffee()[:200, :300], data.chelsea()[20:277, 90:290]
    return [torch.from_numpy(cut.copy()).permute(2, 0, 1) for cut in cuts]


@pytest.mark.slow
def test_image_reward_is_the_packages(tmp_path: Path):
    """At full size: the published manifest, seeded."""
    environment_or_skip("image-reward")
    from evals.metrics.judges import image_reward

    state = seeded(CaseFolder(GOLDEN / "imagereward" / "any").manifest())
    vocabulary = tmp_path / "vocab.txt"
    words = [*WORDS, *(f"[unused{n}]" for n in range(30522 - len(WORDS)))]
    vocabulary.write_text("\n".join(words) + "\n")
    original = OriginalImageReward.start(state, vocabulary, CPU)
    port = ImageReward(image_reward.build(state), image_reward.tokenizer(str(vocabulary)))
    found, want = [], []
    for image in photographs():
        for prompt in ("a red fox in the snow", 'the word . "word'):
            want.append(original.score(None, image[None], items([prompt]))["ImageReward"].item())
            found.append(port.rate([image], [prompt]).item())
    print("ImageReward", want, found)
    assert max(want) - min(want) > 0.01  # images and prompts count
    assert max(abs(a - b) for a, b in zip(found, want, strict=True)) < 1e-4


@pytest.mark.slow
def test_the_detector_is_mmdetections():
    """At full size, in float32. The seeded weights are scaled so that queries differ; masked attention is a threshold,
    so differences of rounding may move a few pixels."""
    environment_or_skip("mmdet")
    from evals.metrics.judges.geneval import detector_weights
    from evals.metrics.judges.geneval.detector import Detector

    state = seeded(dict(CaseFolder(GOLDEN / "geneval" / "tiny").manifest()))
    state["panoptic_head.cls_embed.weight"] *= 40
    state["panoptic_head.query_feat.weight"] *= 10
    image = torch.from_numpy(data.coffee()[100:356, 100:356].copy()).permute(2, 0, 1)[None]
    (want,) = OriginalDetector.start(state, CPU)(image)
    (found,) = Detector(detector_weights.build(state))(image)
    scores = (found.scores - want.scores).abs().max().item()
    apart = (found.masks[:20, None] != want.masks[None, :20]).float().mean(dim=(2, 3))
    print("GenEval's detector: scores", scores, "nearest masks", apart.amin(dim=1).max().item())
    assert want.scores.std() > 1e-3
    assert scores < 1e-4
    assert (found.labels == want.labels).float().mean() > 0.95  # equal scores have no order
    assert apart.amin(dim=1).max() < 1e-3  # each mask has its own there,
    assert apart.median() > 5e-3  # and is not every other's
    assert torch.allclose(found.boxes, want.boxes, atol=1.0)
