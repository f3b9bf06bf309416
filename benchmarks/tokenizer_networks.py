"""Each tokenizer at its published size with weights drawn on the device; no checkpoint is read.

The adapters are the ones that the harness runs; only where their weights come from is another. A further tokenizer is
one function here (see `TOKENIZERS`): build the adapter, name the networks that torch.compile takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from baselines.tokenizers.autoencoder_kl.adapter import SDXLVAE, SDXLVAEOptions, build
from baselines.tokenizers.flextok.adapter import FlexTokD18D28, FlexTokOptions
from baselines.tokenizers.flextok.config import FlexTokConfig, TransformerConfig, VAEConfig
from baselines.tokenizers.flextok.model import FlexTok
from baselines.tokenizers.llamagen.adapter import LlamaGen, LlamaGenOptions
from baselines.tokenizers.seedtok import unclip
from baselines.tokenizers.seedtok.adapter import SeedTok, SeedTokOptions
from baselines.tokenizers.seedtok.model import QFormerConfig, SeedConfig, SeedModel, ViTConfig
from baselines.tokenizers.titok.adapter import TiTokOptions, TiTokS128
from baselines.tokenizers.titok.model import TiTok, TiTokConfig
from baselines.tokenizers.titok.vit import ViTSize
from benchmarks.device_weights import draw_weights
from lactok.interface import Tokenizer
from lactok.models.autoencoder import AutoencoderConfig
from lactok.models.lactok import LacTok, LacTokConfig, build_lactok
from lactok.models.ladd import LatentDecoderConfig, UNetConfig
from lactok.models.vq import VQConfig, VQModel
from lactok.state_dict import meta_skeleton
from lactok.tokenizers.published import LacTokH, LacTokOptions, LacTokT, LacTokTOptions
from lactok.train.simulate import CudaKernels


@dataclass(frozen=True)
class Subject:
    """What is timed. side: of the images, in pixels; networks: the modules whose forward torch.compile may take.

    note: what holds its speed back by design, for whoever reads the share.
    """

    tokenizer: Tokenizer
    side: int
    networks: tuple[nn.Module, ...]
    note: str = ""


def seeded(model: Any, device: torch.device) -> Any:
    """The same model off the meta device, to be evaluated."""
    return draw_weights(model, device).eval().requires_grad_(False)


def llamagen(quick: bool, device: torch.device) -> Subject:
    """VQ-16 at 256 pixels."""
    config = dataclasses.replace(LlamaGen.CONFIG, ch=32, codebook_size=64, z_channels=32) if quick else LlamaGen.CONFIG
    side = 64 if quick else 256

    class Seeded(LlamaGen):
        CONFIG = config

        def _load(self) -> tuple[VQModel, int, None]:
            return seeded(meta_skeleton(VQModel, config), device), self.options.input_size, None

    tokenizer = Seeded(LlamaGenOptions(input_size=side), device)
    return Subject(tokenizer, side, (tokenizer.model.encoder, tokenizer.model.decoder))


QUICK_TITOK = TiTokConfig(
    image_size=64,
    codebook_size=64,
    vit_enc_model_size=ViTSize(64, 2, 2),
    vit_dec_model_size=ViTSize(64, 2, 2),
    num_latent_tokens=16,
    pixel_codebook_size=32,
    pixel_token_size=32,
    pixel_ch=32,
)


def titok(quick: bool, device: torch.device) -> Subject:
    """TiTok-S-128 at 256 pixels."""
    config = QUICK_TITOK if quick else TiTokS128.CONFIG

    class Seeded(TiTokS128):
        def _load(self) -> tuple[TiTok, None]:
            return seeded(meta_skeleton(TiTok, config), device), None

    tokenizer = Seeded(TiTokOptions(), device)
    model = tokenizer.model
    return Subject(tokenizer, config.image_size, (model.encoder, model.decoder, model.pixel_decoder))


def flextok(quick: bool, device: torch.device) -> Subject:
    """d18-d28 at 256 pixels, all 256 ids, 20 guided steps (two passes each)."""
    small = TransformerConfig(64, 1)
    vae = VAEConfig(block_out_channels=(32, 32), layers_per_block=1)
    tiny = FlexTokConfig(encoder=small, decoder=small, vae=vae, registers=8, grid=8)
    config = tiny if quick else FlexTokD18D28.EXPECTED

    class Seeded(FlexTokD18D28):
        def _load(self) -> FlexTok:
            return seeded(meta_skeleton(FlexTok, config), device)

    options = FlexTokOptions(keep_ids=8, steps=2) if quick else FlexTokOptions()
    tokenizer = Seeded(options, device)
    model = tokenizer.model
    return Subject(
        tokenizer,
        config.image_size,
        (model.vae.encoder, model.encoder, model.decoder, model.vae.decoder),
        "its autoencoder works in float32 whatever the precision around it, as published",
    )


def sdxl_vae(quick: bool, device: torch.device) -> Subject:
    """SDXL's autoencoder at 1024 pixels; its published config.json by what gives shapes."""
    widths = (32, 32) if quick else (128, 256, 512, 512)
    config = {
        "_class_name": "AutoencoderKL",
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
    }

    class Seeded(SDXLVAE):
        def __init__(self, options: SDXLVAEOptions, device: torch.device) -> None:
            Tokenizer.__init__(self, options, device)
            self.factor = 2 ** (len(widths) - 1)
            self.model = seeded(build(config), device)

    tokenizer = Seeded(SDXLVAEOptions(), device)
    return Subject(tokenizer, 64 if quick else 1024, (tokenizer.model.encoder, tokenizer.model.decoder))


QUICK_SEED = SeedConfig(
    vit=ViTConfig(img_size=28, embed_dim=88, depth=1, num_heads=4),
    qformer=QFormerConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64),
    n_embed=64,
    decode_depth=1,
    decode_num_heads=4,
    image_features_dim=32,
)


def seedtok(quick: bool, device: torch.device) -> Subject:
    """SEED-2 at 224 pixels, painted by unCLIP at 768 in 20 guided steps."""
    config = QUICK_SEED if quick else SeedTok.CONFIG

    class Seeded(SeedTok):
        CONFIG = config

        def __init__(self, options: SeedTokOptions, device: torch.device) -> None:
            Tokenizer.__init__(self, options, device)
            self.sampling = unclip.Sampling(options.steps, options.guidance_scale, options.noise_level)
            self.model = seeded(meta_skeleton(SeedModel, config), device)
            self.unclip = unclip_pipeline(quick, config.image_features_dim, device).place(device, options)

    tokenizer = Seeded(SeedTokOptions(steps=2) if quick else SeedTokOptions(), device)
    model, pipeline = tokenizer.model, tokenizer.unclip.pipeline
    return Subject(
        tokenizer,
        config.vit.img_size,
        (model.vision.encoder, model.qformer, model.blocks_image, pipeline.unet, pipeline.vae.decoder),
        "its decoder paints one image at a time, so that an image does not depend on its batch",
    )


def unclip_pipeline(quick: bool, embedding_dim: int, device: torch.device) -> unclip.UnCLIP:
    """The stock pipeline with networks of the sizes in the configurations of stable-diffusion-2-1-unclip.

    Its words are cut down to what an empty prompt needs, and stand at the same length of text.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    levels = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    small = {"down_block_types": levels[0], "up_block_types": levels[1], "layers_per_block": 1, "norm_num_groups": 8}
    text_width = 32 if quick else 1024
    with torch.device("meta"):
        unet = UNet2DConditionModel(  # the published down and up blocks are the class's defaults
            sample_size=16 if quick else 96,
            block_out_channels=(16, 32) if quick else (320, 640, 1280, 1280),
            attention_head_dim=(2, 4) if quick else (5, 10, 20, 20),
            cross_attention_dim=text_width,
            use_linear_projection=True,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * embedding_dim,
            **(small if quick else {}),
        )
        widths = (16, 32) if quick else (128, 256, 512, 512)
        vae = AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=2,
            norm_num_groups=8 if quick else 32,
        )
    words = {word: i for i, word in enumerate(["!", "!</w>", "<|startoftext|>", "<|endoftext|>"])}
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=text_width,
        intermediate_size=4 * text_width,
        num_hidden_layers=2 if quick else 23,
        num_attention_heads=2 if quick else 16,
        max_position_embeddings=77,
        bos_token_id=2,
        eos_token_id=3,
    )
    with torch.device("meta"):
        text_encoder = CLIPTextModel(text)
    text_encoder = seeded(text_encoder, device)
    return unclip.UnCLIP(
        StableUnCLIPImg2ImgPipeline(
            feature_extractor=None,
            image_encoder=text_encoder,  # the pipeline reads its dtype, no more
            image_normalizer=StableUnCLIPImageNormalizer(embedding_dim),
            image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
            tokenizer=CLIPTokenizer(vocab=words, merges=[], model_max_length=77, pad_token="!"),
            text_encoder=text_encoder,
            unet=seeded(unet, device),
            scheduler=DDIMScheduler(
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
                prediction_type="v_prediction",
            ),
            vae=seeded(vae, device),
        )
    )


QUICK_LACTOK = LacTokConfig(
    vq=VQConfig(64, 4, encoder_ch_mult=(1, 2), decoder_ch_mult=(1, 2), z_channels=8, ch=8, norm_num_groups=4),
    decoder=LatentDecoderConfig(
        UNetConfig(
            block_out_channels=(8, 16, 16),
            norm_num_groups=4,
            layers_per_block=1,
            cross_attention_dim=12,
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(1, 2, 2),
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 10,
        ),
        condition_channels=4,
        condition_widths=(4, 8),
        text_positions=5,
        pixels_per_latent=2,
    ),
    autoencoder=AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4),
)


def lactok_h(quick: bool, device: torch.device) -> Subject:
    """LacTok-H: one evaluation of SDXL's UNet and of the copy, 256 pixels in, 1024 out."""
    config, sides = _lactok_sizes(quick)

    class Seeded(LacTokH):
        def _load(self) -> tuple[LacTok, int, int, None]:
            return _seeded_lactok(config, device), *sides, None

    return _lactok_subject(Seeded(LacTokOptions(input_size=sides[0], output_size=sides[1]), device))


def lactok_t(quick: bool, device: torch.device) -> Subject:
    """LacTok-T: two evaluations, as in the paper."""
    config, sides = _lactok_sizes(quick)

    class Seeded(LacTokT):
        def _load(self) -> tuple[LacTok, int, int, None]:
            return _seeded_lactok(config, device), *sides, None

    return _lactok_subject(Seeded(LacTokTOptions(input_size=sides[0], output_size=sides[1]), device))


def _lactok_sizes(quick: bool) -> tuple[LacTokConfig, tuple[int, int]]:
    """The networks, and the sides in pixels of what goes in and comes out."""
    return (QUICK_LACTOK, (16, 32)) if quick else (LacTokConfig(), (256, 1024))


def _seeded_lactok(config: LacTokConfig, device: torch.device) -> LacTok:
    return seeded(meta_skeleton(build_lactok, config), device)


def _lactok_subject(tokenizer: LacTokH | LacTokT) -> Subject:
    model = tokenizer.model
    return Subject(
        tokenizer,
        tokenizer.info.input_size,
        (model.vq.encoder, model.decoder.controlnet, model.decoder.unet, model.vae.decoder),
        "its weights are float32, and autocast casts them anew in each evaluation, so a small batch pays for it",
    )


@dataclass(frozen=True)
class DecodeFlops:
    """Of one image, a multiply-add being two: one evaluation of the UNet and of the copy, and the autoencoder."""

    unet: int
    copy: int
    autoencoder: int

    def image(self, evaluations: int) -> int:
        """Of decoding one image in so many evaluations."""
        return evaluations * (self.unet + self.copy) + self.autoencoder


@torch.no_grad()
def decode_flops(config: LacTokConfig, side: int, codes_side: int) -> DecodeFlops:
    """Counted on the meta device, with fused attention, for images of `side` pixels from codes_side^2 ids."""
    model = meta_skeleton(build_lactok, config).eval()
    latents = torch.empty(1, *config.latent_shape(side), device="meta")
    codes = torch.empty(1, config.vq.codebook_embed_dim, codes_side, codes_side, device="meta")
    with FlopCounterMode(display=False) as counter, CudaKernels(autocast=False):
        model.decoder(latents, 999, codes)  # the timestep changes nothing
    parts = counter.get_flop_counts()
    unet, copy = (sum(parts[f"LatentDecoder.{name}"].values()) for name in ("unet", "controlnet"))
    with FlopCounterMode(display=False) as counter, CudaKernels(autocast=False):
        model.images_of(latents)
    return DecodeFlops(unet, copy, counter.get_total_flops())


TOKENIZERS: dict[str, Callable[[bool, torch.device], Subject]] = {
    "llamagen": llamagen,
    "titok": titok,
    "flextok": flextok,
    "seedtok": seedtok,
    "sdxl-vae": sdxl_vae,
    "lactok-h": lactok_h,
    "lactok-t": lactok_t,
}
"""Name to what builds it: (quick: in miniature, device) -> Subject."""
