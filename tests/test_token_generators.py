"""Generators through token ids: the same ids for every decoder, images of their own, files that belong together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baselines.generators.llamagen.adapter import LlamaGenFromText, LlamaGenFromText512, LlamaGenT2IOptions
from baselines.tokenizers.llamagen.adapter import LlamaGenMini
from lactok.conformance import CaseFolder
from lactok.generators.captioned_gpt import CaptionedGPT
from lactok.generators.from_tokens import TokenGenerator
from lactok.generators.lactokgen import LacTokGenTStar
from lactok.generators.text_encoder import TextEncoder
from lactok.interface import Item, ItemsRefused
from lactok.items import prompt_hash
from lactok.models.gpt import GPT
from lactok.models.gpt_generation import Prompt, generate
from lactok.models.gpt_sampling import Sampling, draw, prompt_numbers
from lactok.models.gpt_state_dict import GPTStateDict
from lactok.registry import load
from lactok.state_dict import meta_skeleton
from lactok.weights import CheckpointMismatch, MissingWeights, WeightsError, locate
from tests.tiny_generator import captioned_gpt, gpt_config, llamagen_mini, quick, write_flan, write_gpt

CPU = torch.device("cpu")
MINIS = ("lactokgen-h-mini", "lactokgen-t-mini", "llamagen-t2i-mini")
PUBLISHED = ("lactokgen-h", "lactokgen-h-star", "lactokgen-t-star", "llamagen-t2i", "llamagen-t2i-512")
PROMPTS = ["a red circle", "two blue squares", "", "a zebra 🦓", "a red circle left of a blue square " * 150]
SEEDS = [3, 2**63 - 1, 0, 7, 11]


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with quick():
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt(tmp_path_factory.mktemp("gpt") / "gpt.safetensors", captioned_gpt())


@cache
def make(name: str, **options: object) -> TokenGenerator:
    cls = load("generators", name)
    return cls(cls.Options(**options), CPU)


def items(prompts: Sequence[str]) -> list[Item]:
    return [Item(str(i), str(i), prompt_hash(prompt), prompt) for i, prompt in enumerate(prompts)]


def painted(generator: TokenGenerator, places: Sequence[int] = range(5)) -> list[Tensor]:
    chosen = items([PROMPTS[place] for place in places])
    return generator.generate(chosen, [0] * len(chosen), [SEEDS[place] for place in places])


def test_all_decode_the_same_ids(gpt: Path):
    first, *others = (make(name, gpt=str(gpt)).ids(PROMPTS, SEEDS) for name in MINIS)
    assert first.shape == (5, 64)
    assert len(first.unique()) > 100
    assert len(first.unique(dim=0)) == 5
    assert all(torch.equal(first, other) for other in others)
    other = make(MINIS[0], gpt=str(gpt)).ids(PROMPTS[:1], [4])
    assert not torch.equal(other[0], first[0])
    assert not torch.equal(make(MINIS[0], gpt=str(gpt), guidance_scale=1.0).ids(PROMPTS, SEEDS), first)


@pytest.mark.parametrize("temperature", [0.3, 0.7])
def test_ids_are_the_same_in_a_smaller_batch_but_for_near_ties(gpt: Path, monkeypatch, temperature: float):
    """Logits of another batch size differ by 2e-5, cumulated probabilities by 1e-6: a number as near to a bound of
    one's id may fall on either side. Of these 320 ids at 0.3 that is one, 4e-8 away.
    """
    distances: dict[float, float] = {}

    def draw_noting(probability: Tensor, numbers: Tensor) -> Tensor:
        reached = probability.cumsum(-1, dtype=torch.float64)
        apart = (reached / reached[:, -1:] - numbers[:, None]).abs().min(1).values
        distances.update(zip(numbers.tolist(), apart.tolist()))
        return draw(probability, numbers)

    monkeypatch.setattr("lactok.models.gpt_generation.draw", draw_noting)
    whole = make(MINIS[0], gpt=str(gpt), temperature=temperature).ids(PROMPTS, SEEDS)
    few = make(MINIS[0], gpt=str(gpt), temperature=temperature, together=2).ids(PROMPTS, SEEDS)
    assert len(distances) == whole.numel()
    for one, other, seed in zip(whole, few, SEEDS):
        differing = (one != other).nonzero()[:, 0].tolist()
        if differing:  # what follows the first is another image
            assert distances[prompt_numbers(seed, 64)[differing[0]].item()] < 1e-5
    assert (whole == few).float().mean() > 0.95


@pytest.mark.parametrize(("name", "side"), list(zip(MINIS, (128, 128, 64))))
def test_images_depend_on_neither_batch_nor_order(gpt: Path, name: str, side: int):
    generator = make(name, gpt=str(gpt))
    whole = painted(generator)
    assert all(image.shape == (3, side, side) and image.dtype == torch.float32 for image in whole)
    assert all(0 <= image.min() <= image.max() <= 1 for image in whole)
    assert generator.info.output_size == side
    for places in ([3, 1, 0], [2]):
        for place, image in zip(places, painted(generator, places), strict=True):
            torch.testing.assert_close(image, whole[place], rtol=0, atol=1e-4)
    assert (whole[0] - whole[1]).abs().max() > 0.05
    assert generator.generate([], [], []) == []


def test_no_global_state_is_used(gpt: Path):
    generator = make("lactokgen-h-mini", gpt=str(gpt))
    (first,) = painted(generator, [0])
    torch.manual_seed(99)
    (second,) = painted(generator, [0])
    assert torch.equal(first, second)


def test_what_it_says_of_itself(gpt: Path):
    generator = make("lactokgen-t-mini", gpt=str(gpt))
    info = generator.info
    assert info.settings == {
        "guidance_scale": 1.5, "temperature": 0.3, "top_k": 100, "top_p": 1.0, "tokens": 64, "decoder_steps": 2,
    }  # fmt: skip
    assert info.training is not None
    assert info.training.steps == 7
    assert info.training.core_hours is None or info.training.core_hours > 0.5
    assert "decoder_steps" not in make("llamagen-t2i-mini", gpt=str(gpt)).info.settings
    networks = generator.networks()
    assert {"model", "decoder.model"} <= networks.keys()
    assert generator.unknown_words("a red zebra") == ["zebra"]
    assert not any(parameter.requires_grad for network in networks.values() for parameter in network.parameters())


def test_prompts_that_are_no_text_are_refused(gpt: Path):
    generator = make("llamagen-t2i-mini", gpt=str(gpt))
    with pytest.raises(ItemsRefused) as caught:
        generator.generate([Item("0", "0", "x", "fine"), Item("1", "1", "x", "half \ud83e")], [0, 0], [1, 2])
    assert caught.value.reasons == {
        1: r"the prompt 'half \ud83e' is no valid Unicode at character 5: surrogates not allowed"
    }
    with pytest.raises(ValueError, match="1 seeds for 2 images"):
        generator.generate(items(["a", "b"]), [0, 0], [1])


@pytest.mark.parametrize("name", MINIS)
def test_a_gpt_of_another_encoder_is_refused_by_name(name: str, tmp_path: Path):
    other = write_gpt(tmp_path / "other.safetensors", captioned_gpt(), vq="1" * 64)
    said = r"other\.safetensors was trained with another VQ encoder: tensors with sha256 111111111111\.\.\., .*"
    with pytest.raises(WeightsError, match=said + llamagen_mini()[:12]):
        make(name, gpt=str(other))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"block_size": 49}, "the GPT draws 49 ids of 1024 an image, the decoder takes 64 of 1024: name files that"),
        ({"vocab_size": 512}, "the GPT draws 64 ids of 512 an image, the decoder takes 64 of 1024"),
        ({"words": False}, "has no text encoder of its own: expected a file that learned with options.words"),
    ],
)
def test_a_gpt_of_another_kind_is_refused(tmp_path: Path, changed: dict[str, object], said: str):
    file = write_gpt(tmp_path / "gpt.safetensors", captioned_gpt(**changed))  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=said):
        make("lactokgen-h-mini", gpt=str(file))


def test_another_file_is_refused(gpt: Path, tmp_path: Path):
    shipped = str(locate(LlamaGenMini.weights(LlamaGenMini.Options())[0]))
    with pytest.raises(WeightsError, match=r"llamagen-mini\.safetensors: .*config is none of CaptionedGPTConfig"):
        make("llamagen-t2i-mini", gpt=shipped)
    (tmp_path / "cut.safetensors").write_bytes(gpt.read_bytes()[:-9])
    with pytest.raises(WeightsError, match=r"cut\.safetensors"):
        make("llamagen-t2i-mini", gpt=str(tmp_path / "cut.safetensors"))
    with pytest.raises(MissingWeights, match=r"absent\.safetensors.*recipe=generator scale=mini data\.root=SHARDS"):
        make("llamagen-t2i-mini", gpt=str(tmp_path / "absent.safetensors"))
    with pytest.raises(WeightsError, match="the GPT draws 64 ids of 1024 an image, the decoder takes 49"):
        make("lactokgen-h-mini", gpt=str(gpt), input_size=56)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"together": 0}, "together 0: expected at least 1"),
        ({"temperature": -1.0}, "expected temperature"),
        ({"top_p": 0.0}, "expected temperature"),
        ({"steps": 9}, "steps"),
    ],
)
def test_options_out_of_range_are_refused(gpt: Path, options: dict[str, object], said: str):
    with pytest.raises(ValueError, match=said):
        make("lactokgen-t-mini", gpt=str(gpt), **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_weights_are_named_with_their_commands(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cls = load("generators", name)
    assert cls.scale == "paper"
    with pytest.raises(MissingWeights) as caught:
        cls(cls.Options(), CPU)
    said = str(caught.value)
    assert "hf download google/flan-t5-xl" in said
    assert "options.NAME.text_encoder=DIR" in said
    if name == "lactokgen-h":
        assert "no checkpoint of LacTokGen-H's GPT is published" in said
        assert "recipe=generator scale=paper data.root=SHARDS` and name it by options.NAME.gpt=PATH" in said
    elif name.startswith("lactokgen"):
        assert "hf download OPPOer/LaCTok LaCTokGen-T.pth" in said
    else:
        stage = "t2i_XL_stage2_512.pt" if name.endswith("512") else "t2i_XL_stage1_256.pt"
        assert "hf download peizesun/llamagen_t2i" in said
        assert stage in said
        assert "vq_ds16_t2i.pt" in said


def test_the_published_manifest_fits_both_stages():
    manifest = CaseFolder(Path(__file__).parent / "golden" / "llamagen_gpt" / "any").manifest("manifest.json")
    state = {name: torch.empty(spec.shape, device="meta") for name, spec in manifest.items()}
    for generator in (LlamaGenFromText, LlamaGenFromText512, LacTokGenTStar):
        GPTStateDict().load(meta_skeleton(GPT, generator.GPT_CONFIG), dict(state))
    assert LlamaGenFromText512.GPT_CONFIG.block_size == 1024
    assert LlamaGenFromText512.Options().input_size == 512
    assert LlamaGenFromText.GPT_CONFIG.block_size == LacTokGenTStar.GPT_CONFIG.block_size == 256


class Tiny(LlamaGenFromText):
    """The published chain around llamagen-mini and a tiny GPT."""

    DECODER = LlamaGenMini
    GPT_CONFIG = gpt_config(cls_token_num=120)


@pytest.fixture(scope="module")
def flan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flan(tmp_path_factory.mktemp("flan"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the published form."""
    state = captioned_gpt(words=False, cls_token_num=120).gpt.state_dict()
    file = tmp_path_factory.mktemp("published") / "t2i.pt"
    torch.save({"model": {name: value.half() for name, value in state.items()}, "optimizer": None, "steps": 3}, file)
    return file


def tiny(gpt: Path, flan: Path, **options: object) -> Tiny:
    return Tiny(LlamaGenT2IOptions(gpt=str(gpt), text_encoder=str(flan), **options), CPU)  # type: ignore[arg-type]


@torch.no_grad()
def test_a_published_chain_runs(published: Path, flan: Path):
    generator = tiny(published, flan)
    prompts, seeds = ["A red CAT!", "the sofa", ""], [5, 6, 7]
    states, seen = TextEncoder.load(CPU, str(flan), torch.bfloat16)(prompts)
    model: CaptionedGPT = captioned_gpt(words=False, cls_token_num=120)
    given = [Prompt(state.float(), mask, seed) for state, mask, seed in zip(states, seen, seeds)]
    wanted = generate(model.gpt, given, Sampling(7.5, temperature=1.0, top_k=1000))
    assert torch.equal(generator.ids(prompts, seeds), wanted)
    images = generator.generate(items(prompts), [0] * 3, seeds)
    assert images[0].shape == (3, 64, 64)
    alone = generator.generate(items(prompts[1:2]), [0], seeds[1:2])
    torch.testing.assert_close(alone[0], images[1], rtol=0, atol=1e-4)
    assert not generator.ids(["the sofa"], [6]).equal(tiny(published, flan, guidance_scale=1.0).ids(["the sofa"], [6]))
    assert generator.text.encoder.dtype == torch.bfloat16
    assert tiny(published, flan, text_dtype="float32").text.encoder.dtype == torch.float32
    with pytest.raises(ItemsRefused) as refused:
        generator.generate(items(["the sofa", "the <![<![ sofa"]), [0] * 2, [1, 2])
    assert list(refused.value.reasons) == [1]
    assert "its markup is broken" in refused.value.reasons[1]
    with pytest.raises(ValueError, match="text_dtype 'float16': expected float32 or bfloat16"):
        tiny(published, flan, text_dtype="float16")


def test_an_own_file_does_too_whatever_it_was_trained_with(published: Path, flan: Path, tmp_path: Path):
    changed = {"class_dropout_prob": 0.2, "resid_dropout_p": 0.0, "drop_path_rate": 0.1}
    model = captioned_gpt(words=False, cls_token_num=120, **changed)
    own = tiny(write_gpt(tmp_path / "own.safetensors", model), flan)
    assert torch.equal(own.ids(["the sofa"], [6]), tiny(published, flan).ids(["the sofa"], [6]))
    assert own.info.training is not None
    assert own.info.training.steps == 7


def test_an_own_file_of_another_network_is_refused(published: Path, flan: Path, tmp_path: Path):
    for name, wrong in (("words", captioned_gpt()), ("deep", captioned_gpt(False, cls_token_num=120, n_layer=3))):
        file = write_gpt(tmp_path / f"{name}.safetensors", wrong)
        with pytest.raises(WeightsError, match=rf"{name}\.safetensors is of another GPT: expected one from flan-t5-xl"):
            tiny(file, flan)
    state = torch.load(published)["model"]
    del state["norm.weight"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(CheckpointMismatch, match=r"cut\.pth: .*1 missing: norm\.weight"):
        tiny(tmp_path / "cut.pth", flan)


def test_states_of_another_width_are_refused(published: Path, flan: Path, tmp_path: Path):
    state = captioned_gpt(words=False, cls_token_num=120, caption_dim=24).gpt.state_dict()
    torch.save(state, tmp_path / "wide.pth")
    with pytest.raises(CheckpointMismatch, match=r"wide\.pth"):
        tiny(tmp_path / "wide.pth", flan)
