"""Show-o: golden cases, published checkpoints, prompts, and noise that belongs to an image."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from baselines.generators.golden import case_weights
from baselines.generators.showo.adapter import Showo256, Showo256Options, Showo512, ShowoOptions
from baselines.generators.showo.conformance import magvit_config, run, transformer_config
from baselines.generators.showo.magvit import Magvit, MagvitConfig, code_vectors
from baselines.generators.showo.model import Showo, ShowoConfig
from baselines.generators.showo.prompting import MASKED, Vocabulary, text_row
from baselines.generators.showo.sampler import Sampling, masked_share, sample, seeded_noise
from baselines.generators.showo.state_dict import MagvitStateDict, ShowoStateDict
from lactok import registry
from lactok.conformance import CaseError, CaseFolder
from lactok.interface import Item, ItemsRefused
from lactok.seeded import TensorSpec
from lactok.state_dict import meta_skeleton
from lactok.weights import CheckpointMismatch, MissingWeights, WeightsError

GOLDEN = Path(__file__).parent / "golden" / "showo"
CPU = torch.device("cpu")
TINY, TINY_MAGVIT = CaseFolder(GOLDEN / "tiny"), CaseFolder(GOLDEN / "tiny_magvitv2")


class SmallShowo(Showo256):
    """The published class at the golden cases' sizes: 16 codes of 64, images of 16 pixels."""

    CONFIG = transformer_config(TINY)
    MAGVIT = magvit_config(TINY_MAGVIT)
    CODES_PER_IMAGE = 16


def item(prompt: str) -> Item:
    return Item(prompt, prompt, prompt, prompt)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints and a text tokenizer of SmallShowo's sizes, as its options name them."""
    folder = tmp_path_factory.mktemp("showo")
    paths = {name: folder / name for name in ("weights.safetensors", "magvit.safetensors", "tokenizer.json")}
    save_file(case_weights(TINY, TINY.manifest()), paths["weights.safetensors"])
    codes = {"quantize.embedding": code_vectors(6)}
    save_file(case_weights(TINY_MAGVIT, TINY_MAGVIT.manifest(), codes.get), paths["magvit.safetensors"])
    words = ["[UNK]", "a", "red", "green", "ball", "cube", *(f"w{number}" for number in range(113))]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    tokenizer.enable_truncation(2)  # to be switched off
    tokenizer.save(str(paths["tokenizer.json"]))
    return dict(zip(("weights", "image_tokenizer", "text_tokenizer"), map(str, paths.values())))


@pytest.fixture(scope="module")
def generator(files: dict[str, str]) -> SmallShowo:
    return SmallShowo(Showo256Options(**files, steps=4), CPU)


# Golden cases


@pytest.mark.parametrize("case", [TINY, TINY_MAGVIT], ids=lambda case: case.name)
def test_golden_case(case: CaseFolder):
    lines = {line.tensor: line for line in registry.load("conformance", "showo")(case)}
    assert [line for line in lines.values() if not line.passed] == []
    given = {"image", "generated_tokens", "bits_check_indices"}
    given |= {name for name in case.names if name.endswith(("_gap", "_exponential", "_uniform"))}
    assert set(lines) == set(case.names) - given
    assert max(line.max_rel for line in lines.values() if line.max_rel is not None) < 1e-5


def changed(tmp_path: Path, name: str, change: Callable[[dict], object]) -> dict[str, bool]:
    """Which tensors of a golden case pass under a changed configuration."""
    folder = tmp_path / "showo" / name
    shutil.copytree(GOLDEN / name, folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return {line.tensor: line.passed for line in run(CaseFolder(folder))}


@pytest.mark.parametrize(
    ("change", "moved", "still"),
    [
        (lambda c: c.update(weights_seed=1), "first_logits", "prompt_sequences"),
        (lambda c: c["runs"]["cfg"].update(guidance=4.0), "cfg_probs_first", "low_ids"),
        (lambda c: c["runs"]["cfg"].update(temperature=3.0), "cfg_temperature", "cfg_probs_first"),
        (lambda c: c["runs"]["plain"].update(schedule="cosine"), "plain_mask_len", "plain_probs_first"),
        (lambda c: c["runs"]["low"].update(schedule="sigmoid", params={"tau": 0.5}), "low_mask_len", "cfg_ids"),
        (lambda c: c.update(generation_prompts=[1, 2]), "cfg_model_inputs", "attn_allowed"),
        (lambda c: c.update(rope_theta=100.0), "first_logits", "attn_allowed"),
        (lambda c: c.update(scale_after_seeding={"showo.lm_head.weight": 2.0}), "first_logits", "attn_allowed"),
        (lambda c: c.update(add_after_seeding={"lm_head.bias": 0.5}), "first_logits", "attn_allowed"),
    ],
)
def test_a_case_is_computed_from_its_own_settings(tmp_path: Path, change, moved: str, still: str):
    passed = changed(tmp_path, "tiny", change)
    assert not passed[moved]
    assert passed[still]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tiny", lambda c: c["runs"]["cfg"].update(top_k=5), "runs.cfg has top_k, which this port does not know"),
        ("tiny", lambda c: c["runs"]["cfg"].update(schedule="square"), "schedule 'square': expected cosine"),
        ("tiny", lambda c: c["special_token_ids"].pop("<|soi|>"), "special_token_ids has no '<|soi|>'"),
        ("tiny", lambda c: c.update(part="text"), "part is 'text', expected transformer or magvitv2"),
        ("tiny", lambda c: c.update(scale_after_seeding={"x": 2}), "scales x, which no manifest has"),
        ("tiny_magvitv2", lambda c: c["encoder"].update(attn=1), "encoder has attn, which this port does not know"),
        ("tiny_magvitv2", lambda c: c.update(z_channels=7), "z_channels is not codebook_dim, 6"),
    ],
)
def test_what_a_case_says_and_the_port_does_not_have_is_an_error(tmp_path: Path, name: str, change, message: str):
    with pytest.raises(CaseError) as error:
        changed(tmp_path, name, change)
    assert message in str(error.value)


# Published checkpoints


def on_meta(manifest: Mapping[str, TensorSpec]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(spec.shape, device="meta") for name, spec in manifest.items()}


def test_official_manifests_load_strictly():
    state = on_meta(TINY.manifest("../manifest.json"))
    model = ShowoStateDict().load(meta_skeleton(Showo, ShowoConfig()), dict(state))
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_448_176_770
    with_clip = {"mm_projector.0.weight": torch.empty(2048, 1024, device="meta"), **state}
    ShowoStateDict().load(meta_skeleton(Showo, ShowoConfig()), with_clip)
    del state["showo.lm_head.bias"]
    with pytest.raises(CheckpointMismatch, match=r"1 missing: showo\.lm_head\.bias"):
        ShowoStateDict().load(meta_skeleton(Showo, ShowoConfig()), state)

    state = on_meta(TINY.manifest("../manifest_magvitv2.json"))
    adapter, tokenizer = MagvitStateDict(5), meta_skeleton(Magvit, MagvitConfig())
    adapter.load(tokenizer, dict(state))
    assert set(adapter.to_published(tokenizer.state_dict())) == set(state) - {"quantize.power_vals"}
    with pytest.raises(CheckpointMismatch, match=r"1 unexpected: encoder\.extra"):
        adapter.load(meta_skeleton(Magvit, MagvitConfig()), state | {"encoder.extra": torch.empty(1, device="meta")})


def test_published_vocabulary_and_sizes():
    vocabulary = Vocabulary()
    assert vocabulary.first_code + vocabulary.codes == vocabulary.mask == ShowoConfig().vocab_size - 1
    assert MagvitConfig().codebook_size == vocabulary.codes
    assert MagvitConfig().downsample_factor == 16
    assert Sampling(**{k: getattr(Showo256Options(), k) for k in ("steps", "guidance_scale")}) == Sampling(18, 1.75)
    assert Sampling(ShowoOptions().steps, ShowoOptions().guidance_scale) == Sampling(50, 5.0)


@pytest.mark.parametrize("cls", [Showo256, Showo512])
def test_missing_weights_are_one_message(cls: type[Showo512], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingWeights) as error:
        cls(cls.Options(), CPU)
    assert str(error.value).startswith("3 of 3 files are missing:")
    assert f"`hf download {cls.REPO} pytorch_model.safetensors`" in str(error.value)
    assert "options.NAME.image_tokenizer=PATH" in str(error.value)
    assert [source.repo for source in cls.weights(cls.Options())] == [
        cls.REPO,
        "showlab/magvitv2",
        "microsoft/phi-1_5",
    ]


def test_local_folders_will_do(files: dict[str, str], generator: SmallShowo, tmp_path: Path):
    for name, option in (("show", "weights"), ("magvit", "image_tokenizer")):
        (tmp_path / name).mkdir()
        torch.save(load_file(files[option]), tmp_path / name / "pytorch_model.bin")
    text = Path(files["text_tokenizer"]).parent
    paths = {"weights": tmp_path / "show", "image_tokenizer": tmp_path / "magvit", "text_tokenizer": text}
    other = SmallShowo(Showo256Options(**{k: str(v) for k, v in paths.items()}, steps=4), CPU)
    (one,), (two,) = (g.generate([item("a red ball")], [0], [5]) for g in (generator, other))
    assert torch.equal(one, two)


def test_another_text_tokenizer_is_refused(files: dict[str, str], tmp_path: Path):
    tokenizer = Tokenizer.from_file(files["text_tokenizer"])
    tokenizer.add_tokens(["more"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(WeightsError, match=r"121 tokens with <\|endoftext\|> at 119, expected 120"):
        SmallShowo(Showo256Options(**files | {"text_tokenizer": str(tmp_path / "tokenizer.json")}), CPU)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="can't be read as a tokenizer"):
        SmallShowo(Showo256Options(**files | {"text_tokenizer": str(tmp_path / "tokenizer.json")}), CPU)


# Generation


def test_an_image_depends_on_its_prompt_and_seed_alone(generator: SmallShowo):
    items = [item("a red ball"), item("a green cube"), item("a red ball")]
    together = generator.generate(items, [0, 0, 1], [7, 7, 8])
    assert [tuple(image.shape) for image in together] == [(3, 16, 16)] * 3
    assert all(image.min() >= 0 and image.max() <= 1 for image in together)
    for place in range(3):
        (alone,) = generator.generate([items[place]], [0], [[7, 7, 8][place]])
        assert torch.equal(alone, together[place])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[0], together[2])
    assert generator.generate([], [], []) == []


@pytest.mark.parametrize("changed", [{"guidance_scale": 0.0}, {"steps": 5}, {"temperature": 9.0}, {"schedule": "pow2"}])
def test_options_are_used(files: dict[str, str], generator: SmallShowo, changed: dict):
    other = SmallShowo(Showo256Options(**files, **{"steps": 4} | changed), CPU)
    (one,), (two,) = (g.generate([item("a red ball")], [0], [5]) for g in (generator, other))
    assert not torch.equal(one, two)
    assert {key: other.info.settings[key] for key in changed} == changed


def test_dtype(files: dict[str, str], generator: SmallShowo):
    other = SmallShowo(Showo256Options(**files, steps=4, dtype="bfloat16"), CPU)
    seen = []
    other.model.showo.model.layers[0].mlp.fc1.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    (image,) = other.generate([item("a red ball")], [0], [5])
    assert set(seen) == {torch.bfloat16}
    assert image.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):  # precision=bf16 of a run
        (within,) = generator.generate([item("a red ball")], [0], [5])
    (alone,) = generator.generate([item("a red ball")], [0], [5])
    assert torch.equal(within, alone)
    with pytest.raises(ValueError, match="dtype 'int8': expected float32, bfloat16, float16"):
        SmallShowo(Showo256Options(**files, dtype="int8"), CPU)


def test_facts(generator: SmallShowo):
    assert generator.info.output_size == 16
    assert generator.info.settings == {
        "steps": 4,
        "guidance_scale": 1.75,
        "temperature": 1.0,
        "schedule": "cosine",
        "dtype": "float32",
    }
    assert not generator.info.deterministic


def test_prompts_that_can_not_be_taken_are_refused(generator: SmallShowo):
    items = [item("a red ball"), item("a <|soi|> ball"), item("a \ud800 ball")]
    with pytest.raises(ItemsRefused) as error:
        generator.generate(items, [0, 0, 0], [1, 2, 3])
    assert error.value.reasons == {
        1: "the prompt holds <|soi|>, which Show-o reads as a control token",
        2: r"the prompt 'a \ud800 ball' is no valid Unicode at character 2: surrogates not allowed",
    }
    with pytest.raises(ValueError, match="1 seeds for 2 images"):
        generator.generate(items[:2], [0, 0], [1])


def test_text_tokenizers_own_truncation_is_off(generator: SmallShowo):
    assert generator._ids_of("a red ball a cube") == [1, 2, 4, 1, 5]
    assert text_row(generator._ids_of(""), generator.CONFIG.vocabulary, 12)[-3:] == [125, 119, 119]


# The sampler


def test_schedules_fall_to_nothing():
    for schedule in ("cosine", "linear", "pow2", "pow0.5", "sigmoid"):
        shares = [float(masked_share(schedule, ratio)) for ratio in (0.25, 0.5, 0.75, 1.0)]
        assert shares == sorted(shares, reverse=True)
        assert shares[-1] == pytest.approx(0, abs=2e-6)
    assert float(masked_share("sigmoid", 0.5)) == pytest.approx(0.5)
    for schedule in ("square", "pow", "powx"):
        with pytest.raises(ValueError, match="expected cosine, linear, pow<x> or sigmoid"):
            Sampling(schedule=schedule)
    with pytest.raises(ValueError, match="schedule cosine has no setting tau"):
        Sampling(schedule_settings={"tau": 1.0})
    with pytest.raises(ValueError, match="steps 0"):
        Sampling(steps=0)
    for temperature in (-0.5, math.nan):
        with pytest.raises(ValueError, match=f"temperature {temperature}: expected 0 or more"):
            Sampling(temperature=temperature)
    with pytest.raises(ValueError, match="guidance_scale nan"):
        Sampling(guidance_scale=math.nan)
    with pytest.raises(ValueError, match="guidance_scale -1"):
        Sampling(guidance_scale=-1)


def test_known_codes_stay():
    canvas = torch.full((1, 9), MASKED)
    canvas[0, 3:6] = torch.tensor([4, 0, 2])

    def predict(canvas: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 9, 5)

    codes = sample(predict, canvas, Sampling(steps=3), seeded_noise([1], 9, 5, CPU))
    assert codes[0, 3:6].tolist() == [4, 0, 2]
    assert codes.min() >= 0
