"""LacTok's latent decoder: golden cases, the published names, LoRA merged and apart, and the published accelerators."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lactok.conformance import CaseError, CaseFolder, CheckLine, UnhandledCase
from lactok.models.few_step_lora import merge_hypersd, merge_tlcm
from lactok.models.lactok import LacTok, LacTokConfig, build_lactok
from lactok.models.lactok_state_dict import LacTokStateDict
from lactok.models.ladd import LatentDecoder, LatentDecoderConfig, UNetConfig
from lactok.models.lora import LoRAConfig, add_lora, merge
from lactok.state_dict import meta_skeleton
from lactok.tokenizers.conformance import case_config, case_lora, run, unmerged_model
from lactok.weights import CheckpointMismatch, WeightsError
from tests.ladd_support import LORA, SMALL, UNET, weights

GOLDEN = Path(__file__).parent / "golden" / "lactok"
RELEASED = CaseFolder(GOLDEN)


@pytest.fixture(scope="module")
def small() -> LacTok:
    return LacTokStateDict(LORA).load(meta_skeleton(build_lactok, SMALL), weights(wrapped=True)).eval()


@pytest.fixture(scope="module")
def inputs(small: LacTok) -> tuple[Tensor, Tensor]:
    """Latents (2, 4, 16, 16) and the codes (2, 4, 8, 8) of random ids."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(64, (2, 8, 8), generator=generator)
    return torch.randn(2, 4, 16, 16, generator=generator), small.lookup(ids).detach()


def decoder(config: LatentDecoderConfig, seed: int = 0) -> LatentDecoder:
    torch.manual_seed(seed)
    return LatentDecoder(config).eval()


# The published implementation


@pytest.fixture(scope="module")
def golden_lines() -> dict[str, CheckLine]:
    return {line.tensor: line for line in run(CaseFolder(GOLDEN / "tiny"))}


def test_golden_case(golden_lines: dict[str, CheckLine]):
    names = CaseFolder(GOLDEN / "tiny").names
    inputs = {"tokens", "alt_tokens", "vq_input", "vae_input", "sample", "vq_indices_gap"}
    inputs |= {name for name in names if name.startswith("sampling_noise")}
    assert set(golden_lines) == (set(names) | {"manifest.json"}) - inputs
    assert all(line.passed for line in golden_lines.values()), [x for x in golden_lines.values() if not x.passed]
    assert golden_lines["vq_indices"].ids_equal
    floats = [line for line in golden_lines.values() if line.max_rel is not None]
    assert len(floats) == 35
    assert all(line.max_rel < 1e-5 for line in floats)


def test_the_full_manifest_loads_strictly_without_memory(golden_lines: dict[str, CheckLine]):
    assert golden_lines["manifest.json"].note == "4498 tensors load strictly"
    assert case_config(RELEASED) == LacTokConfig()
    assert case_lora(RELEASED) == LoRAConfig()
    with torch.device("meta"):
        model = build_lactok(LacTokConfig())
    published = {name: spec.shape for name, spec in RELEASED.manifest().items()}
    assert LacTokStateDict(LoRAConfig()).wrapped_shapes(model) == published
    counts = json.loads((GOLDEN / "config.json").read_text())["counts"]
    for part, prefix in ((model.decoder.controlnet, "decoder.controlnet."), (model.vae, "vae.")):
        assert sum(p.numel() for p in part.parameters()) == counts[prefix][1]
    assert sum(p.numel() for p in model.decoder.unet.parameters()) == counts["unet_without_lora"]
    adapters = sum(LoRAConfig().covers(name.removesuffix(".weight")) for name in model.decoder.unet.state_dict())
    assert adapters == counts["lora_layers"]


def test_code_maps_are_resized_as_published(small: LacTok):
    for name, index in load_file(GOLDEN / "schedule.safetensors").items():
        if name.startswith("nearest_"):
            side = int(name.split("_")[1])
            codes = torch.arange(side**2, dtype=torch.bfloat16 if side < 16 else torch.float32).view(1, 1, side, side)
            resized = small.decoder.condition(codes, (128, 128))
            assert resized.dtype == torch.float32
            assert torch.equal(resized[0, 0], codes[0, 0].float()[index.long()][:, index.long()])


# Names


def test_there_and_back(small: LacTok):
    plain = LacTokStateDict().to_published(small.state_dict())
    assert {name: tuple(t.shape) for name, t in plain.items()} == LacTokStateDict().published_shapes(small)
    assert "encoder.conv_blocks.1.attn.0.q.weight" in plain
    back = LacTokStateDict().load(meta_skeleton(build_lactok, SMALL), dict(plain)).state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in small.state_dict().items())


def test_names_of_an_old_peft_load(small: LacTok):
    old = {name.replace(".base_layer.", "."): tensor for name, tensor in weights(wrapped=True).items()}
    state = LacTokStateDict(LORA).load(meta_skeleton(build_lactok, SMALL), old).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in small.state_dict().items())


def test_loading_empties_the_state_and_leaves_nothing_on_meta():
    state = weights(wrapped=True)
    model = LacTokStateDict(LORA).load(meta_skeleton(build_lactok, SMALL), state)
    assert not state
    assert all(not tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_what_does_not_fit_is_named_by_kind():
    state = weights(wrapped=True)
    layer = "decoder.unet.base_model.model.mid_block.resnets.0.conv1"
    del state[f"{layer}.lora_A.default.weight"]
    state["decoder.controlnet.strange"] = torch.zeros(1)
    state["post_quant_conv.bias"] = torch.zeros(9)
    with pytest.raises(CheckpointMismatch) as caught:
        LacTokStateDict(LORA).load(meta_skeleton(build_lactok, SMALL), state)
    message = str(caught.value)
    assert f"1 missing: {layer}.lora_A.default.weight" in message
    assert "1 unexpected: decoder.controlnet.strange" in message
    assert "1 of another shape: post_quant_conv.bias is (9,), expected (8,)" in message
    with pytest.raises(CheckpointMismatch, match=r"lora_A.default.weight is \(4, .*expected \(64, "):
        LacTokStateDict(LoRAConfig()).load(meta_skeleton(build_lactok, SMALL), weights(wrapped=True))
    plain = weights(wrapped=False)
    plain.pop("vae.decoder.conv_out.bias")
    with pytest.raises(CheckpointMismatch, match=r"LacTok without LoRA: 1 missing: vae.decoder.conv_out.bias$"):
        LacTokStateDict().load(meta_skeleton(build_lactok, SMALL), plain)


# LoRA


@torch.no_grad()
def test_merged_and_unmerged_weights_give_the_same(small: LacTok, inputs: tuple[Tensor, Tensor]):
    sample, codes = inputs
    apart = unmerged_model(SMALL, LORA, weights(wrapped=True))
    merged, unmerged = (model.decoder.predict(sample, 499, codes) for model in (small, apart))
    torch.testing.assert_close(merged, unmerged, rtol=0, atol=1e-5 * unmerged.abs().max().item())
    apart.decoder.unet.disable_adapters()
    without = apart.decoder.predict(sample, 499, codes)
    assert (without - unmerged).abs().mean() > 0.01  # else the adapters would hardly matter
    apart.decoder.unet.enable_adapters()
    apart.decoder.unet.fuse_lora()
    apart.decoder.unet.unload_lora()  # peft's own merge
    ours = small.decoder.unet.state_dict()
    for name, theirs in apart.decoder.unet.state_dict().items():
        torch.testing.assert_close(ours[name], theirs, rtol=0, atol=1e-6)


def test_added_adapters_change_nothing_and_are_all_that_learns(inputs: tuple[Tensor, Tensor]):
    sample, codes = inputs
    model = decoder(SMALL.decoder)
    before = model.predict(sample, 10, codes).detach()
    base = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}
    add_lora(model.unet, LORA)
    assert torch.allclose(model.predict(sample, 10, codes), before, atol=1e-6)
    learning = {name for name, parameter in model.unet.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(".lora_" in name for name in learning)
    assert {name.split(".lora_")[0] for name in learning} == {
        name.removesuffix(".weight") for name in base if LORA.covers(name.removesuffix(".weight"))
    }
    model.predict(sample, 10, codes).square().mean().backward()
    for name, parameter in model.unet.named_parameters():
        if ".lora_B." in name:  # attention to zero text states gives nothing but a bias
            unused = ".attn2." in name
            assert (parameter.grad.abs().max() == 0) == unused, name
    state = dict(model.unet.state_dict())
    merge(state, LORA)  # of adapters that are no change
    assert state.keys() == base.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in base.items())


def test_an_unmerged_load_is_strict():
    state = weights(wrapped=True)
    del state["vae.decoder.conv_in.bias"]
    with torch.device("meta"):
        model = build_lactok(SMALL)
        add_lora(model.decoder.unet, LORA)
    with pytest.raises(CheckpointMismatch, match=r"with LoRA: 1 missing: vae\.decoder\.conv_in\.bias$"):
        LacTokStateDict(LORA).load_unmerged(model, state)


# The network


@torch.no_grad()
def test_a_fresh_copy_steers_nothing(inputs: tuple[Tensor, Tensor]):
    sample, codes = inputs
    model = decoder(SMALL.decoder)
    model.copy_unet_encoder()
    unet, copy = model.unet.state_dict(), model.controlnet.state_dict()
    shared = [name for name in copy if name in unet]
    assert all(torch.equal(copy[name], unet[name]) for name in shared)
    rest = {name.split(".")[0] for name in copy if name not in unet}
    assert rest == {"controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block"}
    assert {name.split(".")[0] for name in unet if name not in copy} == {"up_blocks", "conv_norm_out", "conv_out"}
    steered = model.predict(sample, 700, codes)
    assert torch.equal(steered, model.predict(sample, 700, codes, scale=0.0))
    assert torch.equal(steered, model.predict(sample, 700, -codes))
    text = model.empty_text(sample)
    alone = model.unet(sample, 700, encoder_hidden_states=text.states, added_cond_kwargs=text.added).sample
    assert torch.equal(steered, alone)


@torch.no_grad()
def test_codes_and_their_strength_steer(small: LacTok, inputs: tuple[Tensor, Tensor]):
    sample, codes = inputs
    plain = small.decoder.predict(sample, 499, codes)
    assert (small.decoder.predict(sample, 499, codes.flip(0)) - plain).abs().mean() > 0.01
    assert (small.decoder.predict(sample, 499, codes, scale=0.5) - plain).abs().mean() > 0.01


@torch.no_grad()
def test_timesteps_of_a_batch_are_each_pictures_own(small: LacTok, inputs: tuple[Tensor, Tensor]):
    sample, codes = inputs
    both = small.decoder.predict(sample, torch.tensor([900, 20]), codes)
    for i, t in enumerate((900, 20)):
        alone = small.decoder.predict(sample[i : i + 1], t, codes[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], alone, rtol=0, atol=1e-5)


def test_there_is_no_text(small: LacTok):
    sample = torch.zeros(3, 4, 16, 8, dtype=torch.bfloat16)
    text = small.decoder.empty_text(sample)
    assert text.states.shape == (3, 5, 12)
    assert text.added["text_embeds"].shape == (3, 10)
    assert not text.states.any()
    assert not text.added["text_embeds"].any()
    assert text.added["time_ids"].tolist() == [[32, 16, 0, 0, 32, 16]] * 3
    assert {tensor.dtype for tensor in (text.states, *text.added.values())} == {torch.bfloat16}
    released = meta_skeleton(build_lactok, LacTokConfig()).decoder.empty_text(torch.zeros(1, 4, 128, 128))
    assert released.states.shape == (1, 77, 2048)
    assert released.added["text_embeds"].shape == (1, 1280)
    assert released.added["time_ids"].tolist() == [[1024, 1024, 0, 0, 1024, 1024]]


@torch.no_grad()
def test_the_number_of_zero_states_does_not_matter(small: LacTok, inputs: tuple[Tensor, Tensor]):
    sample, codes = inputs
    one = meta_skeleton(
        build_lactok, dataclasses.replace(SMALL, decoder=dataclasses.replace(SMALL.decoder, text_positions=1))
    )
    one.load_state_dict(small.state_dict(), assign=True)
    torch.testing.assert_close(one.decoder.predict(sample, 5, codes), small.decoder.predict(sample, 5, codes))


@pytest.mark.parametrize("kind", ["", "Attn"])
def test_networks_without_text_and_sizes(kind: str, inputs: tuple[Tensor, Tensor]):
    given = {
        "cross_attention_dim": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
    }
    given |= {"down_block_types": (f"{kind}DownBlock2D",) * 3, "up_block_types": (f"{kind}UpBlock2D",) * 3}
    given |= {"mid_block_type": "UNetMidBlock2D"}
    model = decoder(dataclasses.replace(SMALL.decoder, unet=dataclasses.replace(UNET, **given)))
    model.copy_unet_encoder()
    sample, codes = inputs
    assert model.empty_text(sample).states is None
    noise = model.predict(sample, 3, codes)
    assert noise.shape == sample.shape
    noise.square().mean().backward()
    assert model.controlnet.controlnet_mid_block.weight.grad.abs().max() > 0
    assert any("attentions" in name for name in model.state_dict()) == (kind == "Attn")
    assert not any("attn2" in name or "add_embedding" in name for name in model.state_dict())


def test_lower_precision_is_the_networks_own(inputs: tuple[Tensor, Tensor]):
    model = decoder(SMALL.decoder).bfloat16()
    assert model.predict(*(inputs[0], 3, inputs[1])).dtype == torch.bfloat16


def test_configurations_survive_a_checkpoints_header():
    assert LacTokConfig(**json.loads(json.dumps(dataclasses.asdict(SMALL)))) == SMALL
    with pytest.raises(ValueError, match=r"decoder\.condition_channels is 8, expected 4"):
        dataclasses.replace(SMALL, decoder=dataclasses.replace(SMALL.decoder, condition_channels=8))
    with pytest.raises(ValueError, match=r"decoder\.pixels_per_latent is 8, expected 2"):
        dataclasses.replace(SMALL, decoder=dataclasses.replace(SMALL.decoder, pixels_per_latent=8))
    with pytest.raises(ValueError, match="expected both or neither"):
        UNetConfig(addition_time_embed_dim=None)
    assert LacTokConfig().latent_shape(1024) == (4, 128, 128)
    with pytest.raises(ValueError, match="image of 1000 pixels a side: expected a positive multiple of 32"):
        LacTokConfig().latent_shape(1000)


# Accelerators


@pytest.fixture
def trained(tmp_path: Path) -> tuple[LatentDecoder, LatentDecoder]:
    """A plain decoder, and the same with adapters that change something."""
    plain, adapted = decoder(SMALL.decoder), decoder(SMALL.decoder)
    add_lora(adapted.unet, LORA)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.unet.named_parameters():
        if ".lora_" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return plain, adapted


def assert_same(plain: LatentDecoder, adapted: LatentDecoder) -> None:
    wanted = dict(adapted.unet.state_dict())
    merge(wanted, LORA)
    for name, tensor in plain.unet.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-5)


def test_tlcms_adapter_is_merged(trained: tuple[LatentDecoder, LatentDecoder], tmp_path: Path):
    plain, adapted = trained
    state = get_peft_model_state_dict(adapted.unet)
    state = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in state.items()}  # as peft saves it
    path, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    save_file(state, path)
    config.write_text(json.dumps({"r": 4, "lora_alpha": 2, "target_modules": list(LORA.targets)}))
    merge_tlcm(plain.unet, path, config)
    assert_same(plain, adapted)

    config.write_text(json.dumps({"r": 4, "lora_alpha": 2, "target_modules": [], "use_dora": True}))
    with pytest.raises(WeightsError, match=r"adapter_config\.json: a variant of LoRA"):
        merge_tlcm(plain.unet, path, config)
    config.write_text("{}")
    with pytest.raises(WeightsError, match=r"is no adapter_config\.json of peft"):
        merge_tlcm(plain.unet, path, config)


RANKS = {"to_q": 2, r"down_blocks\.1\..*\.to_k": 6, r"^down_blocks\.0\.resnets\.0\.conv1": 3}
ALPHAS = {r"mid_block\..*\.to_v": 3.0, "to_v": 16.0, "conv1": 1.0, r"down_blocks\.1\..*\.to_k": 12.0}


def drawn_with_peft(ranks: dict[str, int], alphas: dict[str, float]) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The small UNet with an adapter that peft itself made and merged, and the adapter as peft saves it."""
    unet = decoder(SMALL.decoder).unet
    settings = PeftConfig(
        r=4, lora_alpha=2, target_modules=list(LORA.targets), rank_pattern=ranks, alpha_pattern=alphas
    )  # fmt: skip
    wrapped, generator = get_peft_model(unet, settings), torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if ".lora_" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    state = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(wrapped).items()}
    return wrapped.merge_and_unload(), state


@pytest.mark.parametrize(("ranks", "alphas"), [({}, ALPHAS), (RANKS, {}), (RANKS, ALPHAS)])
def test_ranks_and_alphas_by_layer_are_pefts(ranks: dict[str, int], alphas: dict[str, float], tmp_path: Path):
    merged, state = drawn_with_peft(ranks, alphas)
    path, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    save_file(state, path)
    settings = {"r": 4, "lora_alpha": 2, "target_modules": list(LORA.targets)}
    config.write_text(json.dumps(settings | {"rank_pattern": ranks, "alpha_pattern": alphas}))
    plain = decoder(SMALL.decoder).unet
    merge_tlcm(plain, path, config)
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(plain.state_dict()[name], tensor, rtol=0, atol=1e-5, msg=name)

    ours = decoder(SMALL.decoder).unet
    lora = LoRAConfig(4, 2.0, LORA.targets, ranks, alphas)
    add_lora(ours, lora)
    ours.load_state_dict({_plain(name): tensor for name, tensor in state.items()}, strict=False)
    wrapped = {f"decoder.unet.base_model.model.{name}": tensor for name, tensor in ours.state_dict().items()}
    merge(wrapped, lora, "decoder.unet.base_model.model.")
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(
            wrapped[f"decoder.unet.base_model.model.{name}"], tensor, rtol=0, atol=1e-5, msg=name
        )

    if ranks:
        config.write_text(json.dumps(settings | {"alpha_pattern": alphas}))
        with pytest.raises(CheckpointMismatch, match=r"rank [236], expected 4 as the settings say"):
            merge_tlcm(decoder(SMALL.decoder).unet, path, config)


def _plain(name: str) -> str:
    """A name in a file of peft's, as the adapted network has it."""
    return name.removeprefix("base_model.model.").replace(".weight", ".default.weight")


def test_an_adapter_of_another_network_is_refused(tmp_path: Path):
    model = decoder(SMALL.decoder)
    path, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"r": 4, "lora_alpha": 2, "target_modules": []}))
    a, b, name = torch.zeros(4, 3), torch.zeros(3, 4), "base_model.model.nowhere.to_q.lora_"
    for state, reason in (
        ({f"{name}A.weight": a, f"{name}B.weight": b}, "1 unexpected layers: nowhere.to_q"),
        ({f"{name}A.weight": a}, "1 layers have one of two matrices: nowhere.to_q"),
        ({"weight": a}, "weight is no weight of a LoRA adapter of peft"),
        ({f"conv_in.lora_{m}.weight": t for m, t in (("A", a), ("B", b))}, r"conv_in: update of shape \(3, 3\)"),
    ):
        save_file(state, path)
        with pytest.raises(CheckpointMismatch, match=reason):
            merge_tlcm(model.unet, path, config)


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_hypersds_adapter_is_merged(form: str, trained: tuple[LatentDecoder, LatentDecoder], tmp_path: Path):
    plain, adapted = trained
    state = {}
    for name, tensor in get_peft_model_state_dict(adapted.unet).items():
        layer, matrix = name.removesuffix(".weight").rsplit(".lora_", 1)
        if form == "kohya":
            layer = "lora_unet_" + layer.replace(".", "_")
            state[f"{layer}.lora_{'down' if matrix == 'A' else 'up'}.weight"] = tensor.contiguous()
            state[f"{layer}.alpha"] = torch.tensor(LORA.alpha)
        else:
            scaled = tensor * LORA.scale_of(layer) if matrix == "B" else tensor  # this form has no alpha
            state[f"unet.{layer}.lora_{matrix}.weight"] = scaled.contiguous()
    path = tmp_path / "Hyper-SDXL-1step-lora.safetensors"
    save_file(state, path)
    names = list(plain.unet.state_dict())
    merge_hypersd(plain.unet, path)
    assert list(plain.unet.state_dict()) == names
    assert_same(plain, adapted)


def test_a_file_that_is_no_lora_of_this_network_is_refused(tmp_path: Path):
    model = decoder(SMALL.decoder)
    path = tmp_path / "lora.safetensors"
    matrices = {"lora_A": torch.zeros(4, 8), "lora_B": torch.zeros(8, 4)}
    for state, reason in (
        ({f"unet.nowhere.{m}.weight": t for m, t in matrices.items()}, "1 unexpected layers: nowhere"),
        ({f"text_encoder.to_q.{m}.weight": t for m, t in matrices.items()}, "it has no UNet layer"),
    ):
        save_file(state, path)
        with pytest.raises(CheckpointMismatch, match=reason):
            merge_hypersd(model.unet, path)


# The runner


@pytest.fixture
def case(tmp_path: Path, small: LacTok, inputs: tuple[Tensor, Tensor]) -> Path:
    """A case of the small network, made by the port itself: what it checks is the runner."""
    folder = tmp_path / "lactok" / "small"
    folder.mkdir(parents=True)
    sample, codes = inputs
    with torch.no_grad():
        tensors = {
            "tokens": torch.cdist(codes.permute(0, 2, 3, 1).flatten(1, 2), small.vq.quantizer.codebook)
            .argmin(2)
            .view(2, 8, 8),
            "quant": codes,
            "sample": sample,
            "noise_pred_t7_scale0.4": small.decoder.predict(sample, 7, codes, 0.4),
            "merged_one": small.decoder.unet.mid_block.resnets[0].conv1.weight.flatten(1)[:2, :3],
        }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "case.safetensors")
    unet = {f.name: getattr(UNET, f.name) for f in dataclasses.fields(UNET)}
    vae = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "scaling_factor": 0.13025}
    rule = {"prefix": "decoder.controlnet.controlnet_cond_embedding.", "suffix": ".weight", "factor": 3.0}
    key = "decoder.unet.base_model.model.mid_block.resnets.0.conv1.base_layer.weight"
    config = {
        "weights_seed": 0,
        "weight_scale": rule,
        "unet": unet,
        "vae": vae | {"latent_channels": 4},
        "vq": dataclasses.asdict(SMALL.vq),
        "scheduler": {"num_train_timesteps": 1000},
        "lora": {"r": 4, "lora_alpha": 2, "target_modules": list(LORA.targets)},
        "conditioning_embedding_out_channels": [4, 8],
        "zero_text_shape": [5, 12],
        "cond_scale": 0.8,
        "timesteps": [999, 124],
        "merged_weight_keys": {"one": key},
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = LacTokStateDict(LORA).wrapped_shapes(meta_skeleton(build_lactok, SMALL))
    manifest = {name: {"shape": list(shape), "dtype": "float32"} for name, shape in shapes.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "case.safetensors")
    change(tensors)
    save_file(tensors, folder / "case.safetensors")


def edit_config(folder: Path, change: Callable[[dict], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def lines(folder: Path) -> dict[str, CheckLine]:
    return {line.tensor: line for line in run(CaseFolder(folder))}


def test_runner_passes_its_own_case_and_sees_what_is_wrong(case: Path):
    passed = lines(case)
    assert passed.keys() == {"noise_pred_t7_scale0.4", "merged_one", "quant"}
    assert all(line.passed and not line.note for line in passed.values())
    edit(case, lambda tensors: tensors.update(secret=torch.zeros(1), merged_one=tensors["merged_one"] + 0.01))
    seen = lines(case)
    assert "no check of this port knows what it is" in seen["secret"].note
    assert not seen["merged_one"].passed
    edit_config(case, lambda config: config.update(weight_scale=None))
    assert not lines(case)["noise_pred_t7_scale0.4"].passed


def test_runner_refuses_a_model_that_the_port_is_not(case: Path):
    edit_config(case, lambda config: config["scheduler"].update(prediction_type="v_prediction"))
    with pytest.raises(CaseError, match=r"scheduler\.prediction_type is 'v_prediction', which this port does not have"):
        lines(case)
    edit_config(case, lambda config: config.pop("unet"))
    with pytest.raises(UnhandledCase, match="not covered"):
        lines(case)
