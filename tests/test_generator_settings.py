"""Settings of `recipe=generator`: what does not fit is explained, dry runs, words, the header."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from lactok.data.folder import DataError
from lactok.generators.captioned_gpt import CaptionedGPTConfig
from lactok.generators.word_encoder import WordEncoderConfig
from lactok.models.gpt import CLASS, GPT, GPTConfig
from lactok.state_dict import meta_skeleton
from lactok.train.__main__ import main
from lactok.train.config import TrainConfigError, compose_config
from lactok.train.recipes.generator import GeneratorOptions, GeneratorRecipe, training_flops
from lactok.weights import HubWeights
from tests.tiny_generator import GPT as TINY_GPT
from tests.tiny_generator import quick, scene_shards, settings, write_flan


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with quick():
        yield


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes."""
    return scene_shards(tmp_path_factory.mktemp("captions"))


@pytest.fixture(scope="module")
def with_states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes with states of 16 values."""
    flan = write_flan(tmp_path_factory.mktemp("flan"))
    folder = tmp_path_factory.mktemp("states")
    return scene_shards(folder, 6, "options.text=flan-t5-xl", f"options.text_encoder='{flan}'")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["options.model.block_size=81"], "data.root has 64 ids of 1024 an image: options.model has block_size 81"),
        (["options.model.vocab_size=512"], "block_size 64 and vocab_size 512"),
        (["options.words=null"], "data.root has no states of captions: extract them (recipe=tokens options.text=flan"),
        (["data.validation=10"], "data.root holds 10 samples, data.validation=10 of them held back"),
        (["options.decoder=llamagen-minni"], "did you mean 'llamagen-mini'"),
        (["options.decoder=seedtok-mini"], "options.decoder=seedtok-mini takes "),
        (["options.decoder_weights=absent.safetensors"], "absent.safetensors"),
        (["options.words.dim=32"], "words of 12 positions and width 32: the GPT has cls_token_num 12 and caption_dim"),
        (["options.words.heads=3"], "dim 16 with 3 heads: expected a multiple"),
        (["options.words.vocabulary=[a,a]"], "vocabulary: expected lower-case words, each one once"),
        (["options.model.class_dropout_prob=1.5"], "class_dropout_prob=1.5: expected 0 or more, below 1"),
        (["options.model.model_type=c2i", "options.model.cls_token_num=1"], "model_type 'c2i': expected 't2i'"),
        (["options.embeddings=zero"], "embeddings=zero: expected random or codebook"),
        (["options.temperature=-1"], "expected temperature"),
        (["options.start=x.pt"], "start and words: published weights go with flan-t5-xl's states"),
        (["options.words=null", "options.start=absent.pt"], "absent.pt"),
    ],
)
def test_what_does_not_fit_is_explained(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
):
    out = tmp_path / "run"
    config = settings(shards, out)
    given = [f"recipe={config.recipe}", f"data.root='{shards}'", f"out='{out}'", "device=cpu", "threads=1", "steps=1"]
    tiny = [*TINY_GPT, "options.words.positions=12", "options.words.dim=16", "options.words.heads=2"]
    if "options.words=null" in more:
        tiny = [*TINY_GPT]
    assert main([*given, *tiny, "data.validation=2", "batch_size=2", *more]) == 2
    assert message in capsys.readouterr().err


def test_states_of_another_shape_are_explained(with_states: Path, tmp_path: Path):
    for more in ("options.model.cls_token_num=64", "options.model.caption_dim=8"):
        with pytest.raises(DataError, match=r"data\.root has states of 120 positions and width 16: options\.model has"):
            GeneratorRecipe.open_data(
                settings(with_states, tmp_path, "options.words=null", "options.model.cls_token_num=120", more)
            )


def test_a_folder_of_images_is_no_folder_of_shards(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images = shards.parent / "scenes"
    assert main(["recipe=generator", f"data.root='{images}'", f"out='{tmp_path / 'run'}'"]) == 2
    assert "holds no token shards (index.json: No such file or directory); `python -m" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("scale", "million"), [("mini", "1.81"), ("paper", "777.")])
def test_a_dry_run_needs_no_weights(
    scale: str, million: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert main(["recipe=generator", f"scale={scale}", "dry_run=true", "steps=5"]) == 0
    said = capsys.readouterr().out
    assert f"parameters  {million}" in said
    assert "GFLOP" in said or "TFLOP" in said or "PFLOP" in said
    assert "no step can be taken" not in said
    assert "not looked at: name data.root=DIR" in said
    assert ("t2i_XL_stage1_256.pt" in said) == (scale == "paper")
    assert not list(tmp_path.iterdir())


def test_a_dry_run_describes_the_shards(shards: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["recipe=generator", "dry_run=true", "steps=5", f"data.root='{shards}'"]) == 0
    said = capsys.readouterr().out
    assert "10 samples of 64 ids in 4 shards below" in said
    assert "llamagen-mini, captions alone" in said


def test_words_of_the_command_line(tmp_path: Path):
    config, recipe = compose_config(
        ["recipe=generator", "data.root=x", "options.words.vocabulary=[a,red,cat]", "options.words.layers=1"]
    )
    assert recipe is GeneratorRecipe
    assert config.options.words == WordEncoderConfig(("a", "red", "cat"), dim=96, layers=1, ffn_dim=256)
    paper, _ = compose_config(
        [
            *("recipe=generator", "scale=paper", "data.root=x", "options.start=null"),
            "options.words={positions:120,dim:2048,layers:1,heads:2,ffn_dim:64}",
        ]
    )
    assert paper.options.words == WordEncoderConfig(positions=120, dim=2048, layers=1, heads=2, ffn_dim=64)
    assert paper.options.model == GPTConfig()
    with pytest.raises(TrainConfigError, match=r"did you mean options\.words\.layers"):
        compose_config(["recipe=generator", "data.root=x", "options.words.layer=1"])


def test_the_header_comes_back():
    config = CaptionedGPTConfig(
        GPTConfig(dim=32, n_head=2, cls_token_num=24, caption_dim=128), WordEncoderConfig(), "llamagen-mini 1234"
    )
    assert CaptionedGPTConfig(**dataclasses.asdict(config)) == config
    with pytest.raises(ValueError, match="model_type"):
        CaptionedGPTConfig(GPTConfig(model_type=CLASS, cls_token_num=1))


def test_flops_are_those_of_the_weights():
    """Of forward and backward: six a weight and position, beside attention."""
    config = GPTConfig()
    weights = sum(p.numel() for name, p in meta_skeleton(GPT, config).named_parameters() if "embed" not in name)
    length = config.positions - 1
    assert training_flops(config) == pytest.approx(6 * weights * length, rel=0.15)
    assert training_flops(config) > 6 * (weights - 100_000) * length


def test_a_missing_decoder_is_told_with_this_recipes_option():
    (decoder,) = GeneratorRecipe.sources(GeneratorOptions(decoder="llamagen-t2i"))
    assert isinstance(decoder, HubWeights)
    assert decoder.otherwise == "name a local file by options.decoder_weights=PATH"
