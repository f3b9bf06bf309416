"""A LacTok at a size that a test can afford, and weights for it under the published names."""

from __future__ import annotations

from torch import Tensor

from lactok.models.autoencoder import AutoencoderConfig
from lactok.models.lactok import LacTokConfig, meta_model
from lactok.models.ladd import LatentDecoderConfig, UNetConfig
from lactok.models.ladd_keymap import plain_shapes, published_shapes
from lactok.models.lora import LoRAConfig
from lactok.models.vq import VQConfig
from lactok.seeded import TensorSpec, seeded_state_dict

UNET = UNetConfig(
    block_out_channels=(8, 16, 16),
    norm_num_groups=4,
    layers_per_block=1,
    cross_attention_dim=12,
    transformer_layers_per_block=(1, 1, 2),
    attention_head_dim=(1, 2, 2),
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=6 * 4 + 10,
)
SMALL = LacTokConfig(
    vq=VQConfig(64, 4, encoder_ch_mult=(1, 2), decoder_ch_mult=(1, 2), z_channels=8, ch=8, norm_num_groups=4),
    decoder=LatentDecoderConfig(UNET, 4, (4, 8), text_positions=5, pixels_per_latent=2),
    autoencoder=AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4),
)
LORA = LoRAConfig(rank=4, alpha=2.0)
CONDITION = "decoder.controlnet.controlnet_cond_embedding."


def weights(wrapped: bool) -> dict[str, Tensor]:
    """Seeded weights under the published names, the UNet wrapped by peft or plain; tokens matter to the result."""
    model = meta_model(SMALL)
    shapes = published_shapes(model, LORA) if wrapped else plain_shapes(model)
    state = seeded_state_dict({name: TensorSpec(shape) for name, shape in shapes.items()})
    for name in state:
        if name.startswith(CONDITION) and name.endswith(".weight"):
            state[name] = state[name] * 3
    return state
