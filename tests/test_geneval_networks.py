"""GenEval's networks: published names load strictly, outputs are the published ones, batches change nothing."""

import hashlib
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evals.cli.conformance import main
from evals.metrics.judges.geneval import colours, detector_weights
from evals.metrics.judges.geneval import metric as geneval
from evals.metrics.judges.geneval.colours import ColourClassifier
from evals.metrics.judges.geneval.crops import crop
from evals.metrics.judges.geneval.detector import CLASSES, Detector
from evals.metrics.judges.geneval.detector_input import fitted_size, prepared, resized
from evals.metrics.judges.geneval.detector_weights import DetectorStateDict, mask2former_config, skeleton
from evals.metrics.judges.geneval.instances import instances
from evals.metrics.judges.geneval.logic import COLOURS, Options, keep
from evals.metrics.judges.geneval.metric import GenEval
from evals.metrics.plan import metric_class
from lactok.conformance import CaseFolder
from lactok.seeded import TensorSpec, manifest_of, seeded_state_dict
from lactok.state_dict import find_state_dict
from lactok.weights import CheckpointMismatch, MissingWeights, WeightsError, load_state_dict
from tests.support import ROOT

GOLDEN = ROOT / "tests" / "golden" / "geneval"
SMALL_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


def small_config():
    return mask2former_config(
        swin={"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
        hidden_dim=32, feature_size=32, mask_feature_size=32, num_attention_heads=4, dim_feedforward=48,
        encoder_feedforward_dim=48, encoder_layers=2, decoder_layers=3, num_queries=20,
    )  # fmt: skip


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """Seeded weights of a small detector under mmdetection's names."""
    shapes = DetectorStateDict().published_shapes(skeleton(small_config()))
    return seeded_state_dict({name: TensorSpec(shape) for name, shape in shapes.items()}, 3)


@pytest.fixture(scope="module")
def detector(published: dict[str, Tensor]) -> Detector:
    return Detector(detector_weights.build(published, config=small_config()))


@pytest.fixture(scope="module")
def classifier() -> ColourClassifier:
    weights = seeded_state_dict(manifest_of(colours.skeleton(**SMALL_CLIP)), 1)
    return ColourClassifier(colours.build(weights, **SMALL_CLIP))


# --- Published names and outputs -------------------------------------------------------------------------------------


def test_the_golden_detector_case(capsys):
    assert main([str(GOLDEN / "tiny")]) == 0
    assert "2 checked: 2 passed, 0 failed" in capsys.readouterr().out


def test_the_golden_crops(capsys):
    assert main([str(GOLDEN / "crops.safetensors")]) == 0
    assert "10 checked: 10 passed, 0 failed" in capsys.readouterr().out


def test_the_official_names_and_shapes_are_taken_strictly():
    manifest = CaseFolder(GOLDEN / "tiny").manifest()
    taken = DetectorStateDict().published_shapes(skeleton())
    left_out = {name for name in manifest if name.endswith(".relative_position_index")}
    assert len(manifest) == 649
    assert taken == {name: spec.shape for name, spec in manifest.items() if name not in left_out}


def test_a_missing_name_is_told(published: dict[str, Tensor]):
    short = {name: tensor for name, tensor in published.items() if name != "panoptic_head.cls_embed.bias"}
    with pytest.raises(CheckpointMismatch, match=r"1 missing: panoptic_head\.cls_embed\.bias"):
        detector_weights.build(short, config=small_config())


def test_names_there_and_back(published: dict[str, Tensor], detector: Detector):
    back = DetectorStateDict().to_published(detector.network.state_dict())
    assert back.keys() == published.keys()
    assert all(torch.equal(back[name], published[name]) for name in published)


def of_mmdet_2(name: str) -> str:
    if "transformer_decoder.layers" in name:
        name = name.replace(".cross_attn.", ".attentions.0.").replace(".self_attn.", ".attentions.1.")
    elif "pixel_decoder.encoder.layers" in name:
        name = name.replace(".self_attn.", ".attentions.0.")
    return name.replace(".ffn.", ".ffns.0.") if "panoptic_head" in name else name


def test_names_of_mmdetection_2_are_the_same_network(published: dict[str, Tensor], detector: Detector):
    """Its decoder layers attend to the image first, so that `attentions.0` is cross-attention there."""
    old = {of_mmdet_2(name): tensor for name, tensor in published.items()}
    assert any(".attentions.1." in name for name in old)
    again = detector_weights.build(old, config=small_config()).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in detector.network.state_dict().items())


def test_a_checkpoint_with_mmcvs_settings_is_read_without_mmcv(tmp_path: Path, monkeypatch, published):
    """As OpenMMLab saves them: settings of classes that are not installed here, beside the tensors."""
    module = types.ModuleType("mmcv.utils.config")
    settings = type("ConfigDict", (dict,), {"__module__": module.__name__})
    module.ConfigDict = settings
    path = tmp_path / "detector.pth"
    with monkeypatch.context() as patch:
        for name in ("mmcv", "mmcv.utils"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        meta = {"config": settings(a=1), "epoch": np.int64(12), "CLASSES": CLASSES, "best": np.float64(0.46)}
        torch.save({"meta": meta, "state_dict": published}, path)
    assert "mmcv" not in sys.modules
    found = find_state_dict(load_state_dict(path), ("state_dict",))
    assert found.keys() == published.keys()
    assert torch.equal(found["panoptic_head.cls_embed.weight"], published["panoptic_head.cls_embed.weight"])


def test_the_classes_are_those_that_prompts_name():
    rows = CaseFolder(GOLDEN / "logic_cases.jsonl.gz").rows()
    named = {clause["class"] for row in rows for clause in row["metadata"]["include"]}
    assert len(set(CLASSES)) == 80
    assert named <= set(CLASSES)


# --- Input and output of the detector --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "size", "sha256"),
    [
        (97, 64, (1213, 800), "a4520fbbb3b3ab65"),
        (64, 64, (800, 800), "ed0cc4d269ab59df"),
        (300, 451, (800, 1203), "ea695e50d1bb06b9"),
        (1600, 1600, (800, 800), "3b1beff3be73df5d"),
    ],
)
def test_the_resize_gives_opencvs_bytes(height: int, width: int, size: tuple[int, int], sha256: str):
    """sha256 of what cv2.resize gave (opencv-python-headless 5.0.0, with and without its optimisations)."""
    image = np.random.RandomState(height).randint(0, 256, (height, width, 3)).astype(np.uint8)
    assert fitted_size(height, width) == size
    found = resized(torch.from_numpy(image).permute(2, 0, 1)[None], size)[0].permute(1, 2, 0).numpy()
    assert hashlib.sha256(np.ascontiguousarray(found).tobytes()).hexdigest()[:16] == sha256


def test_padding_is_zero_after_normalisation():
    pixels, inside = prepared(torch.full((1, 3, 100, 149), 200, dtype=torch.uint8))
    assert inside == (800, 1192)
    assert pixels.shape == (1, 3, 800, 1216)
    assert pixels[..., 1192:].abs().max() == 0
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([1.30705, 1.46569, 1.68139], abs=1e-4)


def test_instances_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(6, 5, generator=generator) * 2
    masks = torch.randn(6, 4, 4, generator=generator) * 3
    masks[2] = -1.0  # empty
    found = instances(classes, masks, (16, 16), (12, 16), (18, 24), most=10)
    rows = []
    for query in range(6):
        enlarged = torch.nn.functional.interpolate(masks[query][None, None], size=(16, 16), mode="bilinear")
        logits = torch.nn.functional.interpolate(enlarged[..., :12, :], size=(18, 24), mode="bilinear")[0, 0]
        mask = logits > 0
        mean = logits.sigmoid()[mask].sum() / (mask.sum() + 1e-6)
        ys, xs = mask.nonzero().unbind(1)
        box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0] * 4
        for label, probability in enumerate(classes[query].softmax(0)[:-1]):
            rows.append((float(probability), float(probability * mean), label, list(map(int, box)), mask))
    rows = sorted(sorted(rows, key=lambda row: -row[0])[:10], key=lambda row: -row[1])
    assert found.scores.tolist() == pytest.approx([row[1] for row in rows], abs=1e-6)
    positive = [place for place, row in enumerate(rows) if row[1] > 0]
    assert 0 < len(positive) < 10
    for place in positive:
        assert found.labels[place] == rows[place][2]
        assert found.boxes[place].tolist() == rows[place][3]
        assert torch.equal(found.masks[place], rows[place][4])
    some = instances(classes, masks, (16, 16), (12, 16), (18, 24), most=10, above=0.3)
    kept = int((found.scores > 0.3).sum())
    assert some.scores[:kept].tolist() == found.scores[:kept].tolist()
    assert len(some.scores) < len(found.scores)
    none = instances(classes, masks, (16, 16), (12, 16), (18, 24), above=1.0)
    assert none.masks.shape == (0, 18, 24)
    assert none.boxes.shape == (0, 4)


# --- Colours ---------------------------------------------------------------------------------------------------------


def test_the_activation_is_quickgelu(classifier: ColourClassifier):
    blocks = [*classifier.clip.transformer.resblocks, *classifier.clip.visual.transformer.resblocks]
    assert {type(block.mlp.gelu).__name__ for block in blocks} == {"QuickGELU"}


def test_colour_logits_by_their_definition(classifier: ColourClassifier):
    from open_clip import get_tokenizer

    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 60, 3)).astype(np.uint8))
    clip, tokenizer = classifier.clip, get_tokenizer("ViT-L-14-quickgelu")
    pixels = torch.from_numpy(np.array(picture.resize((48, 32), Image.Resampling.BICUBIC))).float()[:, 8:40] / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    seen = clip.encode_image(((pixels - mean) / std).permute(2, 0, 1)[None])[0]
    for place, colour in enumerate(COLOURS):
        texts = [f"a photo of a {colour} cat", f"a photo of a {colour}-colored cat", f"a photo of a {colour} object"]
        vectors = clip.encode_text(tokenizer(texts))
        asked = torch.nn.functional.normalize(vectors, dim=-1).mean(0)
        cosine = torch.nn.functional.cosine_similarity(seen, asked, dim=0)
        assert classifier.logits(["cat"], [picture])[0, place].item() == pytest.approx(100 * cosine.item(), abs=1e-4)


def test_openais_archive_is_read(tmp_path: Path, classifier: ColourClassifier):
    """A TorchScript archive with numbers beside the weights."""

    class Archive(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, module in classifier.clip.named_children():
                self.add_module(name, module)
            for name, value in classifier.clip.named_parameters(recurse=False):
                self.register_parameter(name, value)
            self.register_buffer("input_resolution", torch.tensor(32))
            self.register_buffer("vocab_size", torch.tensor(49408))

        def forward(self, x: Tensor) -> Tensor:
            return self.visual(x)

    path = tmp_path / "clip.pt"
    torch.jit.trace(Archive(), torch.zeros(1, 3, 32, 32)).save(str(path))
    found = colours.read_openai(path)
    want = classifier.clip.state_dict()
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], want[name]) for name in want)
    path.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="no TorchScript archive"):
        colours.read_openai(path)
    with pytest.raises(WeightsError, match=r"not a checkpoint of CLIP ViT-L-14-quickgelu: .*Missing key"):
        colours.build({name: want[name] for name in list(want)[1:]}, **SMALL_CLIP)


def test_no_question_has_no_answer(classifier: ColourClassifier):
    assert classifier.answer([], []) == []


def test_a_crop_beyond_the_image_is_black():
    image = torch.full((3, 10, 10), 200, dtype=torch.uint8)
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[2:5, 2:5] = True
    found = np.asarray(crop(image, (1.5, 2.5, 12.0, 5.0), mask))
    assert found.shape == (3, 10, 3)  # 2.5 is rounded to 2, 1.5 too
    assert found[0, 0, 0] == 200
    assert found[0, 5, 0] == 0x99
    assert found[0, 9, 0] == 0


# --- The judge -------------------------------------------------------------------------------------------------------


class Smaller(Detector):
    """With less to resize: the small network says as much about batches at 64 pixels."""

    def __call__(self, images: Tensor, above: float = -1.0):
        size = (images.shape[-2], images.shape[-1])
        scaled = images.float() / 64 - 2
        padded = (-(-size[0] // 32) * 32, -(-size[1] // 32) * 32)
        scaled = torch.nn.functional.pad(scaled, (0, padded[1] - size[1], 0, padded[0] - size[0]))
        return [instances(*one, padded, size, size, above=0.0) for one in zip(*self.logits(scaled))]


@pytest.mark.parametrize("size", [(64, 64), (50, 90)])
def test_batches_change_nothing(detector: Detector, classifier: ColourClassifier, size: tuple[int, int]):
    pixels = torch.randn(32, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    images = torch.randint(0, 256, (32, 3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    whole = detector.logits(pixels)
    crops = [crop(image, (4, 4, 40, 40), None) for image in images]
    answers = classifier.logits(["cat"] * 32, crops)
    judge = GenEval(Smaller(detector.network), classifier)
    seen = [one.scores for one in judge.detector(images)]
    for batch in (1, 7, 32):
        parts = [slice(start, start + batch) for start in range(0, 32, batch)]
        for place, want in enumerate(whole):
            got = torch.cat([detector.logits(pixels[part])[place] for part in parts])
            assert (got - want).abs().max() <= 1e-5 * want.abs().max()
        got = torch.cat([classifier.logits(["cat"] * len(crops[part]), crops[part]) for part in parts])
        assert (got - answers).abs().max() <= 1e-5 * answers.abs().max()
        scores = [one.scores for part in parts for one in judge.detector(images[part])]
        assert max((a - b).abs().max().item() for a, b in zip(scores, seen, strict=True)) <= 1e-5


def test_verdicts_do_not_depend_on_batches(detector: Detector, classifier: ColourClassifier, monkeypatch):
    """Thresholds are lowered to what a seeded network's scores exceed, so that colours are asked for."""
    low = Options(threshold=0.0, counting_threshold=0.0)
    monkeypatch.setattr(geneval, "keep", lambda found, tag: keep(found, tag, low))
    images = torch.randint(0, 256, (14, 3, 64, 64), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    judge = GenEval(Smaller(detector.network), classifier)
    names = {CLASSES[int(one.labels[0])] for one in judge.detector(images)}
    wanted = [
        {"tag": "colors", "include": [{"class": sorted(names)[i % len(names)], "count": 1, "color": COLOURS[i % 10]}]}
        for i in range(14)
    ]
    whole = judge.verdicts(images, wanted)
    assert any("found 0" in reason and "and 1" in reason for verdict in whole for reason in verdict.reasons)
    for batch in (1, 7):
        found = [v for i in range(0, 14, batch) for v in judge.verdicts(images[i : i + batch], wanted[i : i + batch])]
        assert found == whole


def test_what_is_missing_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MissingWeights) as error:
        metric_class("geneval").build(torch.device("cpu"), {})
    said = str(error.value)
    assert "743b7d99.pth" in said
    assert "curl -L" in said
    assert "ViT-L-14.pt" in said


def test_a_missing_package_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    told = r"open_clip can't be imported .*; run `pip install open_clip_torch==3\.3\.0`"
    with pytest.raises(WeightsError, match=told):
        colours.skeleton()


def test_naming_the_metric_is_light():
    code = (
        "import sys; from lactok import registry; registry.load('metrics', 'geneval').weights(); "
        "print([m for m in ('transformers', 'open_clip', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
