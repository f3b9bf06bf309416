"""HART: golden cases, published checkpoints and their configuration, the text half, noise that belongs to an image."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from baselines.generators.golden import case_weights
from baselines.generators.hart import diffusion
from baselines.generators.hart.adapter import Hart, HartOptions
from baselines.generators.hart.config import (
    HART_700M,
    HART_TOKENIZER,
    TransformerConfig,
    parse_tokenizer,
    parse_transformer,
)
from baselines.generators.hart.conformance import run
from baselines.generators.hart.sampler import truncated
from baselines.generators.hart.state_dict import HartStateDict, TokenizerStateDict, level_index
from baselines.generators.hart.text import SYSTEM_PROMPT, load_text_encoder
from baselines.generators.hart.tokenizer import HartTokenizer
from baselines.generators.hart.transformer import HartTransformer
from lactok import registry
from lactok.conformance import CaseError, CaseFolder
from lactok.interface import Item, ItemsRefused
from lactok.state_dict import meta_skeleton
from lactok.weights import CheckpointMismatch, MissingWeights, WeightsError

GOLDEN = Path(__file__).parent / "golden" / "hart"
CPU = torch.device("cpu")
TINY = CaseFolder(GOLDEN / "tiny")
CASES = [TINY, CaseFolder(GOLDEN / "tiny_variant"), CaseFolder(GOLDEN / "tiny_tokenizer")]


def item(prompt: str) -> Item:
    return Item(prompt, prompt, prompt, prompt)


# Golden cases


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden_case(case: CaseFolder):
    lines = {line.tensor: line for line in registry.load("conformance", "hart")(case)}
    assert [line for line in lines.values() if not line.passed] == []
    given = {"context", "context_mask", "context_position_ids", "image"}
    assert set(lines) == {name for name in case.names if not name.endswith("_gap")} - given
    assert max(line.max_rel for line in lines.values() if line.max_rel is not None) < 5e-5


def changed(tmp_path: Path, name: str, change: Callable[[dict], object]) -> dict[str, bool]:
    """Which tensors of a golden case pass under a changed configuration."""
    folder = tmp_path / "hart" / name
    shutil.copytree(GOLDEN / name, folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return {line.tensor: line.passed for line in run(CaseFolder(folder))}


@pytest.mark.parametrize(
    ("name", "change", "moved", "still"),
    [
        ("tiny", lambda c: c.update(weights_seed=1), "scale0_hidden_last", "diffusion_timesteps"),
        ("tiny", lambda c: c.update(cfg=4.0), "scale1_guided_logits_first3", "scale0_guided_logits_first3"),
        ("tiny", lambda c: c.update(more_smooth=False), "scale0_h", "scale0_ids"),
        ("tiny", lambda c: c.update(top_p=0.5), "scale0_h", "scale0_guided_logits_first3"),
        ("tiny", lambda c: c.update(noise_seed_base=5), "scale3_ids", "scale0_hidden_last"),
        ("tiny", lambda c: c["transformer"].update(num_sampling_steps="7"), "diffusion_timesteps", "scale8_ids"),
        ("tiny", lambda c: c["tokenizer"].update(quant_resi=0.4), "scale0_f_hat", "scale0_h"),
        ("tiny", lambda c: c["scale_after_seeding"].pop("head.weight"), "scale0_ids", "scale0_hidden_last"),
        ("tiny", lambda c: c.pop("add_after_seeding"), "scale0_hidden_last", "diffusion_guidance"),
        ("tiny_variant", lambda c: c["transformer"].update(sep_aln_pooling_mode="max"), "f_hat_final", "image_unit"),
        ("tiny_tokenizer", lambda c: c["tokenizer"].update(beta=0.5), "forward_hybrid_loss", "forward_hybrid"),
        ("tiny_tokenizer", lambda c: c["tokenizer"].update(using_znorm=True), "ids_scale8", "hybrid_ids_last"),
    ],
)  # fmt: skip
def test_a_case_is_computed_from_its_own_settings(tmp_path: Path, name: str, change, moved: str, still: str):
    passed = changed(tmp_path, name, change)
    assert not passed[moved]
    assert passed[still]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["transformer"].update(attn_type="gpt2"), "attn_type is 'gpt2', expected 'llama'"),
        (lambda c: c["transformer"].update(use_cross_attn=True), "use_cross_attn is True, expected False"),
        (lambda c: c["transformer"].update(depth2=3), "transformer has depth2, which this port has not"),
        (lambda c: c["tokenizer"].update(quantizer_type="fsq"), "quantizer_type 'fsq': expected var or var_hybrid"),
        (lambda c: c.update(num_maskgit_iters=2), "num_maskgit_iters is not 1"),
        (lambda c: c.update(part="text"), "part is 'text', expected transformer or tokenizer"),
        (lambda c: c["scale_after_seeding"].update(x=2), "scales x, which no manifest has"),
    ],
)
def test_what_a_case_says_and_the_port_does_not_have_is_an_error(tmp_path: Path, change, message: str):
    with pytest.raises(CaseError) as error:
        changed(tmp_path, "tiny", change)
    assert message in str(error.value)


# Published checkpoints


def on_meta(filename: str) -> dict[str, torch.Tensor]:
    return {name: torch.empty(spec.shape, device="meta") for name, spec in TINY.manifest(f"../{filename}").items()}


def test_official_manifests_load_strictly():
    state = on_meta("manifest.json")
    config, channels, codes = HART_700M, HART_TOKENIZER.z_channels, HART_TOKENIZER.vocab_size
    model = HartStateDict().load(meta_skeleton(HartTransformer, config, channels, codes), dict(state))
    assert sum(parameter.numel() for parameter in model.parameters()) == 732_399_744
    assert sum(parameter.numel() for parameter in model.residual_head.parameters()) == 36_585_536
    left_out = set(state) - set(HartStateDict().to_published(model.state_dict()))
    assert left_out == {"attn_bias_for_masking", "lvl_1L"}
    assert level_index(config).shape == state["lvl_1L"].shape == (1, config.positions)
    other = dataclasses.replace(config, patch_nums=(1, 2, 64))
    with pytest.raises(CheckpointMismatch, match=r"lvl_1L of shape \(1, 9750\) is not that of patch_nums \[1, 2, 64\]"):
        HartStateDict().load(meta_skeleton(HartTransformer, other, channels, codes), dict(state))

    state = on_meta("manifest_tokenizer.json")
    skeleton = meta_skeleton(HartTokenizer, HART_TOKENIZER)
    adapter = TokenizerStateDict(skeleton)
    with_disc = state | {"disc.main.0.weight": torch.empty(1, device="meta")}
    adapter.load(skeleton, dict(with_disc))
    assert set(state) - set(adapter.published_shapes(skeleton)) == {"vae.quantize.ema_vocab_hit_SV"}
    second = state | {"vae.decoder2.conv_in.weight": torch.empty(1, device="meta")}
    with pytest.raises(CheckpointMismatch, match=r"1 unexpected: vae\.decoder2\.conv_in\.weight"):
        adapter.load(meta_skeleton(HartTokenizer, HART_TOKENIZER), dict(second))
    double = meta_skeleton(HartTokenizer, dataclasses.replace(HART_TOKENIZER, double_decoder=True))
    adapter.load(double, dict(second))


def test_to_published_and_back():
    case = CaseFolder(GOLDEN / "tiny_tokenizer")
    config, _ = parse_tokenizer(case.setting("tokenizer"))
    skeleton, state = meta_skeleton(HartTokenizer, config), case_weights(case, case.manifest())
    adapter = TokenizerStateDict(skeleton)
    back = adapter.to_published(adapter.load(skeleton, dict(state)).state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in back)


@pytest.mark.parametrize(("share", "names"), [(0, ["0", "1", "2"]), (1, ["qresi"]), (2, ["qresi_ls.0", "qresi_ls.1"])])
def test_residual_convolutions_are_named_by_how_they_are_shared(share: int, names: list[str]):
    config = dataclasses.replace(HART_TOKENIZER, ch=32, share_quant_resi=share, v_patch_nums=(1, 2, 4))
    model = meta_skeleton(HartTokenizer, config)
    published = TokenizerStateDict(model).published_shapes(model)
    assert [f"vae.quantize.quant_resi.{name}.weight" for name in names] == [
        name for name in published if "quant_resi" in name and name.endswith("weight")
    ]
    none = meta_skeleton(HartTokenizer, dataclasses.replace(config, quant_resi=0.0))
    assert not [name for name in TokenizerStateDict(none).published_shapes(none) if "quant_resi" in name]


def test_configuration():
    tree = {"model_type": "hart_transformer_t2i", "attn_type": "llama", "num_sampling_steps": "8", "drop_rate": 0.1}
    config, parsed = parse_transformer(tree | {"depth": 24, "new": 1, "vae_path": None})
    assert config == dataclasses.replace(TransformerConfig(), depth=24)
    assert parsed.unknown == ("new",)
    assert "embed_dim" in parsed.missing
    assert "depth" not in parsed.missing
    with pytest.raises(CheckpointMismatch) as error:
        parse_transformer({"model_type": "other", "sampler": "ddim"})
    for problem in ("attn_type is 'gpt2', expected 'llama' (the published default)", "sampler is 'ddim'", "'other'"):
        assert problem in str(error.value)
    with pytest.raises(
        CheckpointMismatch, match=r"none of a HART: embed_dim 100: expected a multiple of 4 x num_heads"
    ):
        parse_transformer(tree | {"embed_dim": 100})
    with pytest.raises(CheckpointMismatch, match="ch_mult starts with 2, expected 1"):
        parse_tokenizer({"ch_mult": [2, 2]})


def test_shared_adaptive_norms_have_a_table():
    """`disable_aln` with `shared_aln`: a table and the mean of the context, whatever the pooling mode."""
    config = dataclasses.replace(
        parse_transformer(TINY.setting("transformer"))[0], disable_aln=True, shared_aln=True, sep_aln_pooling_mode="max"
    )
    model = HartTransformer(config, 8, 640)
    assert model.blocks[0].scale_shift_table.shape == (6, 48)
    embedded, mask = torch.randn(2, 7, 48), torch.ones(2, 7, dtype=torch.bool)
    assert torch.allclose(model.pooled(embedded, mask), embedded.mean(1), atol=1e-6)
    plain = HartTransformer(dataclasses.replace(config, shared_aln=False), 8, 640)
    assert torch.equal(plain.pooled(embedded, mask), embedded.amax(1))


# Generation


class SmallHart(Hart):
    """The published class; its configuration files are a golden case's."""


def write_text_model(folder: Path, width: int = 24, **tree: Any) -> Path:
    """A small Qwen2 with a tokenizer that pads on the left, as `save_pretrained` would leave them."""
    from transformers import Qwen2Config, Qwen2Model

    folder.mkdir(parents=True)
    letters = ["<pad>", *string.ascii_letters, "\u0120"]  # the last stands for a space
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<pad>", "padding_side": "left"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    given = {"model_type": "qwen2", "vocab_size": 60, "intermediate_size": 32, **sizes}
    torch.manual_seed(0)
    model = Qwen2Model(Qwen2Config.from_dict(given))
    (folder / "config.json").write_text(json.dumps(given | tree))
    state = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Local copies of both repositories, at the golden case's sizes."""
    folder = tmp_path_factory.mktemp("hart")
    own, text = folder / "hart-0.7b-1024px", write_text_model(folder / "text")
    for part in ("llm", "tokenizer"):
        (own / part).mkdir(parents=True)
    (own / "llm" / "config.json").write_text(json.dumps(TINY.setting("transformer")))
    (own / "tokenizer" / "config.json").write_text(json.dumps(TINY.setting("tokenizer")))
    manifest, other = TINY.manifest(), TINY.manifest("manifest_tokenizer.json")
    config, _ = parse_transformer(TINY.setting("transformer"))
    computed = {"lvl_1L": level_index(config)} | {n: torch.zeros(48) for n in manifest if n.endswith("zero_k_bias")}
    torch.save(case_weights(TINY, manifest, computed.get), own / "llm" / "ema_model.bin")
    save_file(case_weights(TINY, other), own / "tokenizer" / "model.safetensors")
    return {"weights": str(own), "text_model": str(text)}


@pytest.fixture(scope="module")
def generator(files: dict[str, str]) -> SmallHart:
    return SmallHart(HartOptions(**files, dtype="float32"), CPU)


def test_an_image_depends_on_its_prompt_and_seed_alone(generator: SmallHart):
    items = [item("a red ball"), item("a green cube"), item("a red ball")]
    together = generator.generate(items, [0, 0, 1], [7, 7, 8])
    assert [tuple(image.shape) for image in together] == [(3, 24, 24)] * 3
    assert all(image.min() >= 0 and image.max() <= 1 for image in together)
    for place in range(3):
        (alone,) = generator.generate([items[place]], [0], [[7, 7, 8][place]])
        assert torch.equal(alone, together[place])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[0], together[2])
    assert generator.generate([], [], []) == []


@pytest.mark.parametrize("changed", [{"guidance_scale": 1.0}, {"more_smooth": False}, {"system_prompt": False}])
def test_options_are_used(files: dict[str, str], generator: SmallHart, changed: dict):
    other = SmallHart(HartOptions(**files, dtype="float32", **changed), CPU)
    (one,), (two,) = (g.generate([item("a red ball")], [0], [5]) for g in (generator, other))
    assert not torch.equal(one, two)
    assert {key: other.info.settings[key] for key in changed} == changed


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype(files: dict[str, str], dtype: str):
    other = SmallHart(HartOptions(**files, dtype=dtype), CPU)
    seen = []
    other.model.blocks[0].attn.proj.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    (image,) = other.generate([item("a red ball")], [0], [5])
    assert set(seen) == {getattr(torch, dtype)}
    assert image.dtype == torch.float32
    assert image.isfinite().all()


def test_facts(generator: SmallHart):
    assert generator.info.output_size == 24
    assert generator.info.settings["steps"] == 9
    assert generator.info.settings["residual_steps"] == 8
    assert HartOptions().dtype == "float16"
    assert not generator.info.deterministic
    with pytest.raises(ValueError, match="dtype 'int8'"):
        SmallHart(HartOptions(dtype="int8"), CPU)


def test_prompts_that_can_not_be_taken_are_refused(files: dict[str, str], generator: SmallHart):
    items = [item("a red ball"), item("a <pad> ball"), item("a \ud800 ball"), item("")]
    with pytest.raises(ItemsRefused) as error:
        generator.generate(items, [0] * 4, [1] * 4)
    assert error.value.reasons == {
        1: "the prompt holds <pad>, which the text model reads as a control token",
        2: r"the prompt 'a \ud800 ball' is no valid Unicode at character 2: surrogates not allowed",
    }
    alone = SmallHart(HartOptions(**files, dtype="float32", system_prompt=False), CPU)
    with pytest.raises(ItemsRefused) as error:
        alone.generate([item("")], [0], [1])
    assert error.value.reasons == {0: "the prompt has no token, and there is no system prompt before it"}


def test_missing_weights_are_one_message(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingWeights) as error:
        Hart(HartOptions(), CPU)
    message = str(error.value)
    assert message.startswith("8 of 8 files are missing:")
    assert "hf download mit-han-lab/hart-0.7b-1024px --local-dir DIR" in message
    assert "hf download mit-han-lab/Qwen2-VL-1.5B-Instruct --local-dir DIR" in message
    names = [source.filename for source in Hart.weights(HartOptions(ema=False))[:2]]
    assert names == ["llm/config.json", "llm/pytorch_model.bin"]


def test_the_llm_folder_and_bin_files_will_do(files: dict[str, str], generator: SmallHart, tmp_path: Path):
    own = Path(shutil.copytree(files["weights"], tmp_path / "hart"))
    state = load_file(own / "tokenizer" / "model.safetensors")
    (own / "tokenizer" / "model.safetensors").unlink()
    torch.save(state, own / "tokenizer" / "pytorch_model.bin")
    (own / "llm" / "ema_model.bin").rename(own / "llm" / "pytorch_model.bin")
    options = HartOptions(str(own / "llm"), files["text_model"], ema=False, dtype="float32")
    (one,), (two,) = (g.generate([item("a cube")], [0], [5]) for g in (generator, SmallHart(options, CPU)))
    assert torch.equal(one, two)


def test_keys_of_the_configuration_that_do_not_fit_are_reported(files, tmp_path: Path, caplog):
    own = Path(shutil.copytree(files["weights"], tmp_path / "hart"))
    path = own / "llm" / "config.json"
    tree = json.loads(path.read_text())
    tree["new_flag"] = True
    del tree["mlp_ratio"]
    path.write_text(json.dumps(tree))
    with caplog.at_level(logging.WARNING):
        SmallHart(HartOptions(str(own), files["text_model"]), CPU)
    assert f"{path}: unknown keys new_flag, which the published code does not read either" in caplog.text
    assert f"{path}: missing keys, the published defaults apply: mlp_ratio=4.0" in caplog.text
    path.write_text(json.dumps(tree | {"use_cross_attn": True}))
    with pytest.raises(CheckpointMismatch, match=r"llm/config\.json: this is no HART .* use_cross_attn is True"):
        SmallHart(HartOptions(str(own), files["text_model"]), CPU)
    path.write_text(json.dumps(tree | {"num_heads": 3}))
    with pytest.raises(CheckpointMismatch, match=r"ema_model\.bin: this is not a checkpoint .*scale_mul_1H11"):
        SmallHart(HartOptions(str(own), files["text_model"]), CPU)
    path.write_text("{")
    with pytest.raises(WeightsError, match="can't be read as JSON"):
        SmallHart(HartOptions(str(own), files["text_model"]), CPU)


# The text half


def test_text_states_are_those_of_the_stock_model(tmp_path: Path):
    """The system prompt stands before the padded prompt; the prompt's positions alone are given."""
    from transformers import Qwen2Model

    folder = write_text_model(tmp_path / "text", rope_scaling={"type": "mrope", "mrope_section": [2, 2, 2]})
    encoder = load_text_encoder(folder, folder / "model.safetensors", 5, 24).eval()
    with torch.no_grad():
        context = encoder("red", True)
    assert context.mask.tolist() == [[False, False, True, True, True]]
    assert context.positions.tolist() == [[-1, -1, 0, 1, 2]]
    tree = json.loads((folder / "config.json").read_text())
    tree.pop("rope_scaling")
    (folder / "config.json").write_text(json.dumps(tree))
    stock = Qwen2Model.from_pretrained(folder).eval()
    red = encoder.tokenizer("red").input_ids
    ids = torch.tensor([[*encoder.tokenizer(SYSTEM_PROMPT, max_length=5, truncation=True).input_ids, 0, 0, *red]])
    assert ids.shape == (1, 10)
    mask = torch.tensor([[1] * 5 + [0, 0, 1, 1, 1]])
    with torch.no_grad():
        states = stock(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1][:, 5:]
    assert torch.allclose(context.states, states, atol=1e-5)
    with torch.no_grad():
        assert encoder(" ".join(["ball"] * 9), False).mask.tolist() == [[True] * 5]


def test_another_text_model_is_refused(tmp_path: Path):
    folder = write_text_model(tmp_path / "text")
    with pytest.raises(WeightsError, match="model_type 'qwen2' of width 24, expected 'qwen2' of width 1536"):
        load_text_encoder(folder, folder / "model.safetensors", 5, 1536)
    state = load_file(folder / "model.safetensors")
    save_file({name: state[name] for name in list(state)[1:]}, folder / "model.safetensors")
    with pytest.raises(CheckpointMismatch, match=r"model\.safetensors: this is not a checkpoint of .* 1 missing"):
        load_text_encoder(folder, folder / "model.safetensors", 5, 24)
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="can't be loaded as HART's text model"):
        load_text_encoder(folder, folder / "model.safetensors", 5, 24)


# Parts


def test_diffusion_steps():
    assert diffusion.schedule(8).timesteps == (999, 856, 714, 571, 428, 285, 143, 0)
    assert diffusion.spaced(5) == [0, 250, 500, 749, 999]
    assert diffusion.schedule(1000).timesteps[:2] == (999, 998)
    assert diffusion.schedule(1).timesteps == (0,)


def test_truncated_logits():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert truncated(logits, 2, 0.0).isinf().tolist() == [[True, True, False, False]]
    assert truncated(logits, 600, 0.0).isinf().tolist() == [[False] * 4]
    assert truncated(logits, 4, 0.7).isinf().tolist() == [[True, True, False, False]]
    assert truncated(logits, 4, 0.1).isinf().tolist() == [[True, True, True, False]]
