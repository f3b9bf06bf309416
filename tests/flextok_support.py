"""FlexTok's checkpoint and its configuration at a size that a test can afford, under the published names."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from baselines.tokenizers.flextok.config import FlexTokConfig, TransformerConfig, VAEConfig
from baselines.tokenizers.flextok.model import FlexTok
from baselines.tokenizers.flextok.state_dict import FlexTokStateDict
from baselines.tokenizers.flextok.transformer import sincos_positions
from lactok.seeded import manifest_of, seeded_state_dict
from lactok.state_dict import meta_skeleton

GOLDEN = Path(__file__).parent / "golden" / "flextok"
SMALL = FlexTokConfig(
    encoder=TransformerConfig(64, 2, head_dim=32),
    decoder=TransformerConfig(96, 2, head_dim=32),
    vae=VAEConfig(4, (16, 32), layers_per_block=1, norm_num_groups=8, scaling_factor=0.7),
    registers=16,
    latent_channels=4,
    grid=4,
)


def published_tree() -> dict:
    """The golden case's configuration, which is the published one at other sizes."""
    return json.loads((GOLDEN / "tiny" / "config.json").read_text())["model"]


def small_tree(config: FlexTokConfig = SMALL) -> dict:
    """A checkpoint's configuration with the sizes of `config`."""
    tree = published_tree()
    for half, trunk in (("encoder", config.encoder), ("decoder", config.decoder)):
        for module in tree[half]["module_dict"].values():
            if "dim" in module:
                module["dim"] = trunk.dim
        transformer = tree[half]["module_dict"][f"{half[:3]}_transformer"]
        transformer |= {"depth": trunk.depth, "head_dim": trunk.head_dim}
    encoder, decoder = tree["encoder"]["module_dict"], tree["decoder"]["module_dict"]
    encoder["enc_register_module"] |= {"n_min": config.registers, "n_max": config.registers}
    decoder["dec_registers_posemb_module"]["max_sizes"] = [config.registers]
    for module in (encoder["enc_posemb_module"], decoder["dec_patches_posemb_module"]):
        module["max_sizes"] = [config.grid, config.grid]
    for module in (encoder["enc_patch_emb"], decoder["dec_noise_patch_emb"]):
        module["channels_in"] = config.latent_channels
    decoder["dec_to_patches"]["channels_out"] = config.latent_channels
    tree["vae"] = {"_target_": "flextok.vae_wrapper.StableDiffusionVAE", "latent_channels": 4, "scaling_factor": 0.7}
    return tree


def seeded_weights(config: FlexTokConfig = SMALL) -> dict[str, torch.Tensor]:
    """Seeded weights of `config` under the published names, with a condition that matters (as in the golden case)."""
    names = FlexTokStateDict().to_published(meta_skeleton(FlexTok, config).state_dict())
    state = seeded_state_dict({name: manifest_of_tensor(tensor) for name, tensor in names.items()}, seed=1)
    for name in state:
        if name.endswith(("dec_registers_posemb_module.posembs", "dropout_mask_token", "nullcond", "registers")):
            state[name] = state[name] * 10
        elif name.endswith("posemb_module.posembs"):
            state[name] = sincos_positions(state[name].shape[1], config.grid)
    return state


def manifest_of_tensor(tensor: torch.Tensor):
    (spec,) = manifest_of(torch.nn.ParameterList([torch.nn.Parameter(tensor)])).values()
    return spec


def write_checkpoint(path: Path, official: dict[str, torch.Tensor], config: FlexTokConfig = SMALL) -> Path:
    """A file as published: weights, and the configuration as Python literals in the header."""
    save_file(official, path, metadata={key: str(value) for key, value in small_tree(config).items()})
    return path
