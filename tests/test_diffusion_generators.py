"""Stable Diffusion 1.5, SDXL, SD3 and FLUX.1-dev as generators: the stock pipelines, small and with seeded weights."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub import constants

from evals.engine.models import Conditions, ModelRun
from evals.engine.rows import Row, check_options
from lactok.interface import Item, ItemsRefused
from lactok.registry import entries, load
from lactok.weights import CheckpointMismatch, HubWeights, LocalWeights, MissingWeights, WeightsError, locate_all
from tests.commands import evals
from tests.support import table, the_run
from tests.tiny_pipelines import WRITE

CPU = torch.device("cpu")
NAMES = list(WRITE)
SMALL = {"steps": 2, "size": 32, "dtype": "float32"}
PROMPTS = ["a red ball", "two blue cups on a table", "x"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: write(root / name) for name, write in WRITE.items()}


def options(name: str, folder: Path, **more: Any) -> Any:
    cls = load("generators", name)
    return check_options(name, cls.Options, {"weights": str(folder), **SMALL, **more})


def build(name: str, folder: Path, precision: str = "fp32", **more: Any) -> Any:
    row = Row(name, name, load("generators", name), options(name, folder, **more))
    return ModelRun(row, Conditions(CPU, precision, 0), 4).built()


def items(*prompts: str) -> list[Item]:
    return [Item(str(n), str(n), "0" * 64, prompt) for n, prompt in enumerate(prompts)]


def images(model: Any, prompts: list[str], seeds: list[int]) -> torch.Tensor:
    with torch.inference_mode():  # as the engine calls it
        return torch.stack(model.generate(items(*prompts), [0] * len(prompts), seeds))


@pytest.mark.parametrize("name", NAMES)
def test_an_image_depends_on_its_prompt_and_seed_alone(name: str, folders: dict[str, Path]):
    model = build(name, folders[name])
    made = images(model, PROMPTS, [5, 6, 2**63 - 1])
    assert made.shape == (3, 3, 32, 32)
    assert made.min() >= 0
    assert made.max() <= 1
    assert made.std() > 0.01
    torch.manual_seed(9)  # the global generator has no part in it
    torch.testing.assert_close(images(model, PROMPTS[1:2], [6]), made[1:2], rtol=0, atol=0)
    again = images(model, PROMPTS[::-1], [2**63 - 1, 6, 5])
    torch.testing.assert_close(again.flip(0), made, rtol=0, atol=0)
    assert not torch.equal(images(model, PROMPTS[:1], [6]), made[:1])
    assert not torch.equal(images(model, ["a green ball"], [5]), made[:1])


@pytest.mark.parametrize("name", NAMES)
def test_images_made_together_differ_by_rounding_alone(name: str, folders: dict[str, Path]):
    alone, together = (images(build(name, folders[name], together=n), PROMPTS, [5, 6, 7]) for n in (1, 2))
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_settings_reach_the_pipeline_and_are_stated(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    model, calls = build(name, folders[name], guidance_scale=2.5, steps=3), []
    cls = type(model.pipeline)
    assert cls.__name__ == type(model).PIPELINE
    call = cls.__call__
    monkeypatch.setattr(
        cls, "__call__", lambda self, *args, **kwargs: calls.append(kwargs) or call(self, *args, **kwargs)
    )
    default = images(model, ["a"], [1])
    (given,) = calls
    assert (given["num_inference_steps"], given["guidance_scale"], given["height"], given["width"]) == (3, 2.5, 32, 32)
    assert "negative_prompt" not in given
    assert [type(g) for g in given["generator"]] == [torch.Generator]
    info = model.info
    assert info.output_size == 32
    assert not info.deterministic
    assert info.settings == {
        "steps": 3,
        "guidance_scale": 2.5,
        "size": 32,
        "dtype": "float32",
        "scheduler": type(model.pipeline.scheduler).__name__,
        **({"text_tokens": given["max_sequence_length"]} if "max_sequence_length" in given else {}),
        "revision": "a local folder",
    }
    for changed in ({"guidance_scale": 6.0}, {"steps": 4}):
        other = build(name, folders[name], **{"guidance_scale": 2.5, "steps": 3, **changed})
        assert not torch.equal(images(other, ["a"], [1]), default), changed


def test_the_defaults_are_those_of_the_published_examples():
    found = {
        name: {key: value for key, value in dataclasses.asdict(load("generators", name).Options()).items()}
        for name in NAMES
    }
    seen = {n: (o["steps"], o["guidance_scale"], o["size"], o["dtype"], o["together"]) for n, o in found.items()}
    assert seen == {
        "sd1.5": (50, 7.5, 512, "float16", 1),
        "sdxl": (50, 5.0, 1024, "float16", 1),
        "sd3": (28, 7.0, 1024, "float16", 1),
        "flux.1-dev": (50, 3.5, 1024, "bfloat16", 1),
    }


HARD = {
    "empty": "",
    "long": "a cat and a dog " * 313,
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 🦄",
    "right to left": "قطة حمراء \u202eabc\u202c חתול",
    "control characters": "a\x00b\x07c\x1b[31m\td\r\ne\u200b\ufeff",
    "not printable": "\udbff\udfff".encode("utf-16", "surrogatepass").decode("utf-16"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_hard_prompt_gives_an_image(name: str, folders: dict[str, Path]):
    assert len(HARD["long"]) > 5000
    model = build(name, folders[name])
    made = images(model, list(HARD.values()), list(range(len(HARD))))
    assert made.isfinite().all()
    assert made.shape == (len(HARD), 3, 32, 32)
    for place, prompt in enumerate(HARD.values()):  # and it is no matter what the others are
        torch.testing.assert_close(images(model, [prompt], [place])[0], made[place], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_that_is_no_text_is_refused_by_name(name: str, folders: dict[str, Path]):
    model = build(name, folders[name])
    with pytest.raises(ItemsRefused) as refused:
        images(model, ["a", "a cat \ud83d"], [1, 2])
    assert list(refused.value.reasons) == [1]
    assert "'a cat \\ud83d' is no valid Unicode at character 6" in refused.value.reasons[1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_that_of_the_option_alone(name: str, dtype: str, folders: dict[str, Path]):
    """Whatever `precision` is; and twice, since SDXL's autoencoder goes to float32 and back."""
    model, other = (build(name, folders[name], how, dtype=dtype) for how in ("fp32", "bf16"))
    wanted = getattr(torch, dtype)
    held = {p.dtype for network in other._parts().values() for n, p in network.named_parameters() if ".wo." not in n}
    assert held == {wanted}  # transformers keeps T5's output projection in float32
    made = images(model, ["a", "b"], [1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(images(other, ["a", "b"], [1, 2]), made, rtol=0, atol=0)
    assert made.isfinite().all()


def test_an_autoencoder_that_was_left_in_float32_is_brought_back(folders: dict[str, Path]):
    model = build("sdxl", folders["sdxl"], dtype="float16")
    made = images(model, ["a"], [1])
    model.pipeline.vae.to(torch.float32)  # as when memory runs out between the pipeline's two casts
    torch.testing.assert_close(images(model, ["a"], [1]), made, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_saving_memory_changes_no_image_but_by_tiles(name: str, folders: dict[str, Path]):
    plain = images(build(name, folders[name], size=64), ["a"], [1])
    saving = build(name, folders[name], size=64, cpu_offload=True, vae_slicing=True)
    torch.testing.assert_close(images(saving, ["a"], [1]), plain, rtol=0, atol=1e-5)
    tiled = build(name, folders[name], size=64, vae_tiling=True)
    assert isinstance(tiled.pipeline.vae, AutoencoderKL)
    assert tiled.pipeline.vae.tile_latent_min_size == 16
    assert not torch.equal(images(tiled, ["a"], [1]), plain)


def test_there_is_no_safety_checker_and_no_watermark(folders: dict[str, Path]):
    assert build("sd1.5", folders["sd1.5"]).pipeline.safety_checker is None
    assert build("sdxl", folders["sdxl"]).pipeline.watermark is None


def test_the_second_tokenizer_pads_as_published(folders: dict[str, Path]):
    for name in ("sdxl", "sd3"):
        assert build(name, folders[name]).pipeline.tokenizer_2.pad_token == "!"


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("sd1.5", {"size": 33}, "size 33: expected a multiple of 2 pixels"),
        ("sd3", {"size": 34}, "size 34: expected a multiple of 4 pixels"),
        ("flux.1-dev", {"steps": 0}, "steps 0: expected at least 1"),
        ("sdxl", {"together": 0}, "together 0: expected at least 1"),
    ],
)
def test_an_option_out_of_range_is_named(name: str, more: dict, message: str, folders: dict[str, Path]):
    with pytest.raises(ValueError, match=message):
        build(name, folders[name], **more)


# Files


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_is_missing_is_named_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cls = load("generators", name)
    started = time.perf_counter()
    sources = cls.weights(cls.Options())
    with pytest.raises(MissingWeights) as caught:
        locate_all(sources)
    assert time.perf_counter() - started < 5
    message = str(caught.value)
    assert message.count("hf download") == 1
    assert all(source.filename in message for source in sources)
    assert f"--revision {cls.REVISION}" in message
    assert str(tmp_path) in message
    gated = f"accept {cls.TERMS} at https://huggingface.co/{cls.REPOSITORY}"
    assert (gated in message) == (name in ("sd3", "flux.1-dev"))
    assert all(isinstance(source, HubWeights) and source.revision == cls.REVISION for source in sources)


@pytest.mark.parametrize("name", NAMES)
def test_the_published_files_are_those_that_a_folder_is_read_from(name: str, folders: dict[str, Path]):
    """But for the number of shards, and the tokenizers that newer libraries write as other files."""
    cls = load("generators", name)

    def plain(files: list[str]) -> set[str]:
        return {file for file in files if "-of-" not in file and not file.startswith("tokenizer")}

    published = plain([s.filename for s in cls.weights(cls.Options(dtype="float32")) if isinstance(s, HubWeights)])
    local = [s for s in cls.weights(options(name, folders[name])) if isinstance(s, LocalWeights)]
    assert published == plain([str(Path(s.path).relative_to(folders[name])) for s in local])


def test_float16_takes_the_published_variant_of_sdxl():
    cls = load("generators", "sdxl")
    files = {s.filename for s in cls.weights(cls.Options())}
    assert {"unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder_2/model.fp16.safetensors"} <= files
    assert not any(".fp16." in s.filename for s in cls.weights(cls.Options(dtype="bfloat16")))


def test_a_folder_that_lacks_a_part_or_holds_another_ones_is_refused(folders: dict[str, Path], tmp_path: Path):
    with pytest.raises(MissingWeights, match=r"text_encoder_2/config\.json") as missing:
        build("sdxl", folders["sd1.5"])
    assert "tokenizer_2/tokenizer_config.json" in str(missing.value)
    with pytest.raises(MissingWeights, match="files are missing"):
        build("sd1.5", tmp_path / "absent")
    changed = WRITE["sd1.5"](tmp_path / "changed")
    config = json.loads((changed / "unet" / "config.json").read_text())
    (changed / "unet" / "config.json").write_text(json.dumps(config | {"block_out_channels": [8, 24]}))
    with pytest.raises(CheckpointMismatch, match="unet: the tensors are not those of its config"):
        build("sd1.5", changed)
    (changed / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "Nothing"}')
    with pytest.raises(WeightsError, match="'Nothing', expected one of diffusers' schedulers"):
        build("sd1.5", changed)


def test_generators_are_registered_by_the_papers_names():
    assert set(NAMES) <= set(entries("generators"))


def test_a_run_from_the_command_line(tmp_path: Path, folders: dict[str, Path]):
    """Names and options with dots; settings stand in the table."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\na blue cup\n")
    given = [f"options.{n}.{k}={v}" for n in ("sd1.5", "flux.1-dev") for k, v in SMALL.items()]
    folder = [f"options.{n}.weights='{folders[n]}'" for n in ("sd1.5", "flux.1-dev")]
    done = evals(
        "suite=generate", "generators=[sd1.5,flux.1-dev]", f"dataset.root={prompts}", f"out={tmp_path / 'out'}",
        "device=cpu", *given, *folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = table(tmp_path / "out")
    rows = {label.split("[")[0]: json.loads(found.loc[label, "settings"]) for label in found.index}
    assert rows["sd1.5"]["scheduler"] == "PNDMScheduler"
    assert rows["flux.1-dev"]["text_tokens"] == 512
    assert (the_run(tmp_path / "out") / "contact.png").is_file()
