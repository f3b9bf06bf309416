"""The preference judges: golden cases, official checkpoints' names, preprocessing, batches, prompts, pictures."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import PIL
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms
from torchvision.transforms import functional

from evals.metrics.judges import base, hpsv2, image_reward, mps
from evals.metrics.judges.conformance import run_hpsv2, run_imagereward, run_mps
from evals.metrics.judges.pickled_module import read_pickled_module
from evals.metrics.plan import identity, metric_class
from evals.tasks.protocol import GenerationProtocol
from lactok.conformance import CaseFolder
from lactok.state_dict import meta_skeleton
from lactok.weights import CheckpointMismatch, LocalWeights, MissingWeights, WeightsError
from tests.commands import evals
from tests.judge_support import MPS, PROMPTS, clip_tokenizer, items, mps_weights, noise, tiny
from tests.support import install_plugin

GOLDEN = Path(__file__).parent / "golden"
RUNNERS = {"imagereward": (run_imagereward, 7), "mps": (run_mps, 11), "hpsv2": (run_hpsv2, 12)}
JUDGES = ("imagereward", "mps", "hpsv2-2.0", "hpsv2-2.1")


# --- golden cases ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", RUNNERS)
def test_golden_cases_pass(model: str):
    run, count = RUNNERS[model]
    case = CaseFolder(GOLDEN / model / "tiny")
    lines = list(run(case))
    assert [line for line in lines if not line.passed] == []
    assert len({line.tensor for line in lines}) == len(lines) == count
    assert count == len([name for name in case.names if not name.startswith(("in.", "feat.in."))])


@pytest.mark.parametrize(
    ("model", "change", "changed"),
    [
        ("imagereward", {"weights_seed": 1}, "out.reward"),
        ("imagereward", {"mean": 0.0}, "out.reward"),
        ("imagereward", {"scale_after_seeding": {"mlp.layers.7.weight": 1.01}}, "mid.mlp_raw"),
        ("imagereward", {"add_after_seeding": {"mlp.layers.7.bias": 0.01}}, "mid.mlp_raw"),
        ("mps", {"seed": 1}, "out.score_image_i_text_j"),
        ("mps", {"threshold": 0.9}, "feat.out.score"),
        ("mps", {"keep_initial_value": ["logit_scale"]}, "out.score_image_i_text_j"),
        ("hpsv2", {"quick_gelu": True}, "out.hps_score"),
    ],
)
def test_what_the_configuration_says_counts(tmp_path: Path, model: str, change: dict, changed: str):
    shutil.copytree(GOLDEN / model / "tiny", tmp_path / model / "tiny")
    file = tmp_path / model / "tiny" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    failed = {line.tensor for line in RUNNERS[model][0](CaseFolder(file.parent)) if not line.passed}
    assert changed in failed


# --- official checkpoints --------------------------------------------------------------------------------------------

OFFICIAL = {
    "imagereward": (image_reward.ImageRewardAdapter(), image_reward.ImageRewardNet, image_reward.ImageRewardConfig()),
    "mps": (mps.MpsAdapter(), mps.MpsNet, mps.MpsConfig()),
    "hpsv2": (hpsv2.HpsAdapter(), hpsv2.empty, hpsv2.HpsConfig()),
}


@pytest.mark.parametrize("model", OFFICIAL)
def test_official_names_and_shapes_load_strictly(model: str):
    """The whole published manifest, on the meta device: nothing lacks, and what is left out is known by name."""
    adapter, empty, config = OFFICIAL[model]
    entries = CaseFolder(GOLDEN / model / "any").manifest()
    dtypes = {"float32": torch.float32, "int64": torch.int64}
    official = {
        name: torch.empty(entry.shape, dtype=dtypes[entry.dtype], device="meta") for name, entry in entries.items()
    }
    net = meta_skeleton(empty, config)
    adapter.load(net, dict(official))
    left_out = {name for name in official if adapter.is_unused(name, net)}
    assert set(adapter.published_shapes(net)) == set(official) - left_out
    assert all(name.startswith(("blip.vision_proj", "blip.text_proj")) or "position_ids" in name for name in left_out)
    some = next(name for name in reversed(official) if name not in left_out)
    with pytest.raises(CheckpointMismatch, match=f"1 missing: {some}"):
        adapter.load(net, {name: value for name, value in official.items() if name != some})
    with pytest.raises(CheckpointMismatch, match="1 unexpected: stranger"):
        adapter.load(net, official | {"stranger": torch.empty(1, device="meta")})


def test_missing_weights_are_told_at_once_with_the_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told = {}
    for name in JUDGES:
        with pytest.raises(MissingWeights) as error:
            identity(metric_class(name), GenerationProtocol("test"))
        told[name] = str(error.value)
    pins = "5736be03b2652728fb87788c9797b0570450ab72", "86b5e0934494bd15c9632b12f734a8a67f723594"
    assert f"hf download zai-org/ImageReward ImageReward.pt --revision {pins[0]}" in told["imagereward"]
    assert f"hf download google-bert/bert-base-uncased vocab.txt --revision {pins[1]}" in told["imagereward"]
    assert "gdown 17qrK_aJkVNM75ZEvMEePpLj6L867MLkN" in told["mps"]
    assert "python -m evals judges convert-mps MPS_overall_checkpoint.pth" in told["mps"]
    assert "hf download xswu/HPSv2 HPS_v2_compressed.pt" in told["hpsv2-2.0"]
    assert "hf download xswu/HPSv2 HPS_v2.1_compressed.pt" in told["hpsv2-2.1"]


def test_a_missing_package_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "open_clip.model", None)
    with pytest.raises(MissingWeights, match=r"run `pip install open_clip_torch==3\.3\.0`"):
        hpsv2.empty(hpsv2.HpsConfig())


def test_the_pinned_package_is_the_one_that_is_named():
    pins = (Path(__file__).parent.parent / "constraints.txt").read_text().split()
    assert base.CLIP_VOCABULARY.requirement in pins


# --- the pickled checkpoint of MPS -----------------------------------------------------------------------------------


def classes(name: str, *names: str, monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """Classes of modules under `name`, which is importable until the test ends."""
    module = ModuleType(name)
    made = [type(n, (nn.Module,), {"__module__": name}) for n in names]
    for cls in made:
        setattr(module, cls.__name__, cls)
    for parent in ("trainer", "trainer.models"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    return made


def pickled(file: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with these tensors pickled whole, with classes that can't be imported afterwards."""
    with monkeypatch.context() as patch:
        root, part = classes("trainer.models.clip_model", "CLIPModel", "XCLIPModel", monkeypatch=patch)
        whole = root()
        for name, value in state.items():
            *path, leaf = name.split(".")
            here = whole
            for step in path:
                if step not in here._modules:
                    here.add_module(step, part())
                here = here._modules[step]
            if name.endswith((".norm.bias", ".inv_freq", "position_ids")):
                here.register_buffer(leaf, value)
            else:
                setattr(here, leaf, nn.Parameter(value))
        whole.register_buffer("pos_emb", torch.ones(2), persistent=False)
        whole.activation = nn.GELU()
        whole.settings = {"names": {1, 2}, "dtype": torch.float16, "size": torch.Size([1])}
        torch.save(whole, file)


def test_a_pickled_network_gives_its_state_dict_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    state = mps_weights() | {"model.text_model.embeddings.position_ids": torch.arange(77)[None]}
    pickled(tmp_path / "released.pth", state, monkeypatch)
    assert "trainer.models.clip_model" not in sys.modules
    found = read_pickled_module(tmp_path / "released.pth")
    assert set(found) == set(state)
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert "trainer.models.clip_model" not in sys.modules
    saved = mps.convert(tmp_path / "released.pth", tmp_path / "cache" / "mps.safetensors", MPS)
    judge = mps.Mps(mps.build(mps.load_tensors(LocalWeights(str(saved))), MPS), clip_tokenizer())
    pictures = list(noise(2, 40, 40))
    assert torch.equal(judge.rate(pictures, PROMPTS[:2]), tiny("mps").rate(pictures, PROMPTS[:2]))


def test_another_network_is_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pickled(tmp_path / "released.pth", {"model.logit_scale": torch.ones(())}, monkeypatch)
    with pytest.raises(CheckpointMismatch, match=r"released\.pth: this is not a checkpoint of MPS: \d+ missing"):
        mps.convert(tmp_path / "released.pth", tmp_path / "mps.safetensors", MPS)
    assert not (tmp_path / "mps.safetensors").exists()
    done = evals("judges", "convert-mps", tmp_path / "absent.pth", module="evals")
    assert done.returncode == 1
    assert "absent.pth" in done.stderr


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, protocol: int):
    victim = tmp_path / "victim"
    torch.save(Touch(victim), tmp_path / "bad.pth", pickle_protocol=protocol)
    with pytest.raises(WeightsError, match=r"it wants .*refused"):
        read_pickled_module(tmp_path / "bad.pth")
    assert not victim.exists()


def test_what_is_no_pickled_network_is_said(tmp_path: Path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "state.pth")
    with pytest.raises(WeightsError, match="holds a dict, expected a network pickled whole"):
        read_pickled_module(tmp_path / "state.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(WeightsError, match="can't be read as a pickled network"):
        read_pickled_module(tmp_path / "text.pth")
    torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.ones(1)), str(tmp_path / "script.pth"))
    with pytest.raises(WeightsError, match="is a TorchScript archive, expected a network pickled whole"):
        read_pickled_module(tmp_path / "script.pth")


# --- preprocessing ---------------------------------------------------------------------------------------------------

SIZES = [
    (61, 83),
    (90, 70),
    (224, 224),
    (225, 227),
    (1, 1),
    (3, 7),
    (7, 4),
    (40, 1000),
    (512, 512),
    (777, 500),
    (600, 224),
    (120, 50),
    (400, 9),
]


def picture(height: int, width: int) -> Image.Image:
    """Noise, or where the sum of sides is odd, black and white pixels, whose resize overshoots."""
    pixels = noise(1, height, width, seed=height * width)[0].permute(1, 2, 0).numpy()
    return Image.fromarray((pixels > 127).astype(np.uint8) * 255 if (height + width) % 2 else pixels)


@pytest.mark.parametrize("side", [48, 224])
@pytest.mark.parametrize("size", SIZES)
def test_the_resize_has_pillows_bytes(size: tuple[int, int], side: int):
    if int(PIL.__version__.partition(".")[0]) < 13 and size[0] > 2 * size[1]:
        pytest.skip("Pillow before 13 does the rows of tall images first")
    image = picture(*size)
    resize = transforms.Resize(side, transforms.InterpolationMode.BICUBIC)
    want = np.asarray(transforms.CenterCrop(side)(resize(image)))
    got = base.shortest_to(base.rgb(image)[None], side, base.torchvision_offset)[0]
    assert np.array_equal(got.permute(1, 2, 0).numpy(), want)


@pytest.mark.parametrize("size", SIZES)
def test_mps_preprocesses_as_transformers(size: tuple[int, int]):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = picture(*size)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    want = processor(image, return_tensors="pt")["pixel_values"]
    assert torch.allclose(tiny("mps").preprocess(base.rgb(image)[None]), want, atol=1e-6)


def test_a_crop_of_odd_rest_differs_between_the_libraries():
    assert [base.torchvision_offset(n) for n in range(5)] == [0, 0, 1, 2, 2]
    assert [base.transformers_offset(n) for n in range(5)] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_hpsv2_pads_the_longest_side(size: tuple[int, int], antialias: bool):
    """The package's own steps, with torchvision's functions."""
    image, side = picture(*size), 28
    pixels = functional.to_tensor(image)
    new = [max(1, round(length * side / max(size))) for length in size]
    if new != list(size):
        pixels = functional.resize(pixels, new, functional.InterpolationMode.BICUBIC, antialias=antialias)
    down, right = side - new[0], side - new[1]
    pixels = functional.pad(pixels, [right // 2, down // 2, right - right // 2, down - down // 2], fill=0)
    want = functional.normalize(pixels, base.MEAN, base.STD)
    judge = hpsv2.HpsV20(tiny("hpsv2-2.0").network, None, antialias)
    got = judge.preprocess(base.rgb(image)[None])[0]
    assert got.shape == (3, side, side)
    assert torch.allclose(got, want, atol=1e-5)


# --- judging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JUDGES)
def test_batches_change_nothing(name: str):
    """1, 7 and 32 at once, within 1e-5; each value belongs to its image and its prompt."""
    judge = tiny(name)
    images, prompts = noise(32, 50, 40), [f"{PROMPTS[n % 7]} fox {n}" for n in range(32)]
    column = judge.columns[0].name
    found = {}
    for size in (1, 7, 32):
        parts = [slice(start, start + size) for start in range(0, 32, size)]
        values = [judge.score(None, judge.embed(images[p], ()), items(prompts[p]))[column] for p in parts]
        found[size] = torch.cat(values)
        assert found[size].dtype == torch.float64
        assert torch.allclose(found[size], found[32] if 32 in found else found[1], rtol=0, atol=1e-5)
    assert (found[1] - found[32]).abs().max() <= 1e-5
    assert len(found[1].unique()) > 20
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    moved = judge.score(None, judge.embed(images[order], ()), items([prompts[i] for i in order]))[column]
    assert torch.allclose(moved, found[32][order], rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", JUDGES)
def test_devices_agree(name: str):
    judge, images = tiny(name), noise(7, 50, 40)
    want = judge.rate(list(images), PROMPTS)
    judge.network.cuda()
    judge.device = torch.device("cuda")
    judge.__dict__.pop("condition", None)
    assert torch.allclose(judge.rate(list(images), PROMPTS), want, rtol=0, atol=1e-5)
    assert torch.equal(judge.preprocess(images.cuda()).cpu(), judge.preprocess(images)) or name.startswith("hps")


@pytest.mark.parametrize("name", JUDGES)
def test_any_prompt_and_any_picture(name: str):
    judge = tiny(name)
    colours = picture(30, 45)
    modes = [colours.convert(mode) for mode in ("L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr")]
    strange = [Image.new("RGB", size, "red") for size in ((1, 1), (1, 300), (500, 2))]
    pictures = [*modes, *strange, noise(1, 33, 21)[0]]
    prompts = [PROMPTS[n % len(PROMPTS)] for n in range(len(pictures))]
    values = judge.rate(pictures, prompts, batch=4)
    assert values.isfinite().all()
    alone = torch.cat([judge.rate([p], [t]) for p, t in zip(pictures, prompts, strict=True)])
    assert torch.allclose(values, alone, rtol=0, atol=1e-5)
    assert judge.rate([], []).shape == (0,)
    with pytest.raises(ValueError, match="1 pictures and 2 prompts"):
        judge.rate(pictures[:1], prompts[:2])


@pytest.mark.parametrize("name", JUDGES)
def test_an_item_without_a_prompt_is_named(name: str):
    judge = tiny(name)
    with pytest.raises(ValueError, match="item 1 has no prompt"):
        judge.score(None, judge.embed(noise(2, 30, 30), ()), items(["a fox", ""]))


def test_float16_is_close_and_named_apart():
    pictures = list(noise(7, 40, 40))
    half, full = tiny("mps", cls=mps.MpsHalf), tiny("mps")
    assert half.network.dtype == torch.float16
    difference = (half.rate(pictures, PROMPTS) - full.rate(pictures, PROMPTS)).abs().max()
    assert 0 < difference < 0.02
    assert half.columns[0].name != full.columns[0].name


def test_the_forwards_way_of_masking_depends_on_the_batch():
    """Where a prompt keeps no token, it has no value."""
    forward = mps.Mps(tiny("mps").network, clip_tokenizer(), above=0.9, of_batch=True)
    pictures = list(noise(7, 40, 40))
    together, apart = (forward.rate(pictures, PROMPTS, batch=n) for n in (7, 1))
    assert apart.isfinite().all()
    assert together.isnan().any()
    assert torch.equal(apart, mps.Mps(forward.network, clip_tokenizer(), above=0.9).rate(pictures, PROMPTS, batch=1))


def test_the_two_tokenizers_agree_on_plain_prompts():
    from open_clip.tokenizer import SimpleTokenizer

    prompts = ["A red Fox, in the snow!", "it's 3 o'clock: don't (run)", "x" * 400]
    ours = tiny("mps").ids(prompts)
    theirs = SimpleTokenizer(context_length=77)(prompts)
    end = 49407
    for a, b in zip(ours.tolist(), theirs.tolist(), strict=True):
        length = b.index(end) + 1
        assert a[:length] == b[:length]
        assert a[0] == 49406
        assert set(a[length:]) <= {end}


def test_bert_tokens_have_their_places():
    judge = tiny("imagereward")
    (ids,) = judge.tokenizer(["A red fox\n[ENC]"], padding="max_length", max_length=10)["input_ids"]
    assert ids[:6] == [2, 5, 6, 7, 16, 3]
    assert ids[6:] == [0] * 4


# --- a run -----------------------------------------------------------------------------------------------------------

PLUGIN = """
from pathlib import Path
import torch
from evals.metrics.judges.mps import Mps
from evals.suites.catalog import Suite
from lactok.interface import Generator, GeneratorInfo
from lactok.weights import LocalWeights
from tests import judge_support

SUITE = Suite("gen", "greys", task="generation", settings={"dataset": "prompts", "calibration": "false"})
FILE = LocalWeights(str(Path(__file__).parent / "tiny.safetensors"))


class Grey(Generator):
    @property
    def info(self):
        return GeneratorInfo("grey", deterministic=True)

    def generate(self, items, seed_indices, seeds):
        return torch.stack([torch.full((3, 24, 16), (len(item.payload) % 10) / 10) for item in items])


class TinyMps(Mps):
    name = "tiny-mps"

    @classmethod
    def weights(cls):
        return (FILE,)

    @classmethod
    def build(cls, device, settings):
        net = judge_support.mps.build(judge_support.mps.load_tensors(FILE), judge_support.MPS)
        return cls(net.to(device), judge_support.clip_tokenizer())
"""


def test_a_judge_scores_a_generator_by_its_prompts(tmp_path: Path):
    from safetensors.torch import save_file

    names = {"generators": {"grey": "Grey"}, "metrics": {"tiny-mps": "TinyMps"}, "suites": {"gen": "SUITE"}}
    plugin = install_plugin(tmp_path / "plugin", "greyplugin", PLUGIN, {}, **names)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text.strip()}) + "\n" for text in PROMPTS))
    values = []
    for seed in (0, 1):  # the same folder: the images are stored, and scored anew by another network
        save_file(mps_weights(seed), plugin / "tiny.safetensors")
        done = evals(
            "suite=gen", "generators=[grey]", f"dataset.root={prompts}", f"out={tmp_path / 'out'}",
            "metrics=[tiny-mps,imagereward]", "offline=true", plugins=(plugin,),
        )  # fmt: skip
        assert done.returncode == 1, done.stderr  # imagereward is missing, and said
        folder = max((tmp_path / "out" / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        record = json.loads((folder / "run.json").read_text())
        assert any("hf download zai-org/ImageReward" in line for line in record["missing_metrics"])
        judge = mps.Mps(mps.build(mps_weights(seed), MPS), clip_tokenizer())
        greys = [torch.full((3, 24, 16), int(len(p.strip()) % 10 / 10 * 255 + 0.5)).byte() for p in PROMPTS]
        want = judge.rate(greys, [p.strip() for p in PROMPTS]).mean().item()
        values.append(pd.read_csv(folder / "table.csv", index_col=0).loc["grey", "MPS"])
        assert values[-1] == pytest.approx(want, abs=1e-5)
    assert abs(values[0] - values[1]) > 1e-3
