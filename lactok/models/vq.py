"""The convolutional VQ tokenizer of LlamaGen (arXiv 2406.06525), whose encoder and quantizer LacTok takes over.

Stock diffusers `Encoder` and `Decoder` with attention at the lowest resolution only compute the published network;
lactok/models/vq_state_dict.py names its checkpoint's tensors. `patch_size` > 1 puts a pixel-unshuffle in front and its
mirror at the end, which keeps a miniature off full-resolution convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lactok.models.quantizer import QuantizerLosses, VectorQuantizer


@dataclass(frozen=True)
class VQConfig:
    """Architecture of a `VQModel`; the defaults are LlamaGen's VQ-16 (its vq_model.py), with the published names.

    ch: base width; encoder_ch_mult, decoder_ch_mult: width of each level, highest resolution first, in units of ch.
    num_res_blocks: residual blocks a level in the encoder; the decoder has one more.
    norm_num_groups: of every group norm. commit_loss_beta, entropy_loss_ratio: see QuantizerLosses.
    patch_size: side of the patches that are unshuffled into channels before the encoder; 1 for the published model.
    """

    codebook_size: int = 16384
    codebook_embed_dim: int = 8
    codebook_l2_norm: bool = True
    codebook_show_usage: bool = True
    commit_loss_beta: float = 0.25
    entropy_loss_ratio: float = 0.0
    encoder_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    z_channels: int = 256
    ch: int = 128
    num_res_blocks: int = 2
    in_channels: int = 3
    out_channels: int = 3
    dropout_p: float = 0.0
    norm_num_groups: int = 32
    patch_size: int = 1

    def __post_init__(self) -> None:
        for name in ("encoder_ch_mult", "decoder_ch_mult"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON gives lists
        if self.encoder_ch_mult[0] != 1:
            raise ValueError(
                f"encoder_ch_mult starts with {self.encoder_ch_mult[0]}, expected 1: the encoder's first convolution "
                "has the width of its first level; change ch instead"
            )

    @property
    def downsample_factor(self) -> int:
        """Pixels of an id's side: every level but the last halves, after the patches."""
        return self.patch_size * 2 ** (len(self.encoder_ch_mult) - 1)


@dataclass(frozen=True)
class Encoded:
    """What `VQEncoder.encode` gives, at h = H / downsample_factor and w = W / downsample_factor.

    quantized: float32 (B, D, h, w), the codes, with the straight-through gradient; ids: int64 (B, h, w);
    pre_quant: (B, D, h, w), the encoder's vectors before normalisation.
    """

    quantized: Tensor
    ids: Tensor
    pre_quant: Tensor


@dataclass(frozen=True)
class VQOutput:
    """What a training step needs: reconstruction (B, 3, H, W) around [-1, 1], the codes, and the quantizer's losses."""

    reconstruction: Tensor
    encoded: Encoded
    losses: QuantizerLosses


class VQEncoder(nn.Module):
    """The half that encodes: images (B, 3, H, W), RGB in [-1, 1], to ids (B, h, w), and ids to codes.

    All that a latent decoder takes over. H and W: multiples of `downsample_factor`.
    """

    def __init__(self, config: VQConfig | None = None) -> None:
        # diffusers takes seconds to import; what only names this class (a list, a finished run) does not wait for it
        from diffusers.models.autoencoders.vae import Encoder

        super().__init__()
        self.config = config = config or VQConfig()
        self.encoder = Encoder(
            in_channels=config.in_channels * config.patch_size**2,
            out_channels=config.z_channels,
            down_block_types=("DownEncoderBlock2D",) * (len(config.encoder_ch_mult) - 1) + ("AttnDownEncoderBlock2D",),
            block_out_channels=tuple(config.ch * m for m in config.encoder_ch_mult),
            layers_per_block=config.num_res_blocks,
            norm_num_groups=config.norm_num_groups,
            double_z=False,
        )
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_embed_dim, 1)
        self.quantizer = VectorQuantizer(
            config.codebook_size,
            config.codebook_embed_dim,
            l2_norm=config.codebook_l2_norm,
            beta=config.commit_loss_beta,
            entropy_ratio=config.entropy_loss_ratio,
            track_usage=config.codebook_show_usage,
        )
        self.unshuffle = nn.PixelUnshuffle(config.patch_size)
        _set_dropout(self.encoder, config.dropout_p)

    @property
    def downsample_factor(self) -> int:
        """Pixels of an id's side (16 for VQ-16)."""
        return self.config.downsample_factor

    def pre_quant(self, images: Tensor) -> Tensor:
        """Encoder's vectors (B, D, h, w) before normalisation. Raises ValueError for a size that does not divide."""
        height, width = images.shape[-2:]
        if height % self.downsample_factor or width % self.downsample_factor:
            raise ValueError(
                f"image of {width}x{height} pixels: both sides must be multiples of {self.downsample_factor}"
            )
        return self.quant_conv(self.encoder(self.unshuffle(images)))

    def encode(self, images: Tensor) -> Encoded:
        """Images (B, 3, H, W) in [-1, 1] to codes; ids run row by row. Raises ValueError as `pre_quant`."""
        pre_quant = self.pre_quant(images)
        quantized, ids = self.quantizer(pre_quant)
        return Encoded(quantized, ids, pre_quant)

    def lookup(self, ids: Tensor) -> Tensor:
        """Codes (B, D, h, w) of int64 ids (B, h, w) in [0, codebook_size); unit length with codebook_l2_norm."""
        return self.quantizer.lookup(ids)


class VQModel(VQEncoder):
    """Images (B, 3, H, W), RGB in [-1, 1], to ids (B, h, w) and back. H and W: multiples of `downsample_factor`."""

    def __init__(self, config: VQConfig | None = None) -> None:
        from diffusers.models.autoencoders.vae import Decoder

        super().__init__(config)
        config, area = self.config, self.config.patch_size**2
        self.post_quant_conv = nn.Conv2d(config.codebook_embed_dim, config.z_channels, 1)
        self.decoder = Decoder(
            in_channels=config.z_channels,
            out_channels=config.out_channels * area,
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (len(config.decoder_ch_mult) - 1),
            block_out_channels=tuple(config.ch * m for m in config.decoder_ch_mult),
            layers_per_block=config.num_res_blocks,
            norm_num_groups=config.norm_num_groups,
        )
        self.shuffle = nn.PixelShuffle(config.patch_size)
        _set_dropout(self.decoder, config.dropout_p)
        nearest_init(self.decoder.conv_out, area)

    def decode(self, quantized: Tensor) -> Tensor:
        """Codes (B, D, h, w) to images (B, 3, H, W) around [-1, 1], not clamped."""
        return self.shuffle(self.decoder(self.post_quant_conv(quantized.to(self.post_quant_conv.weight.dtype))))

    def decode_ids(self, ids: Tensor) -> Tensor:
        """Ids (B, h, w) to images; see `lookup` and `decode`."""
        return self.decode(self.lookup(ids))

    def quantizer_losses(self, pre_quant: Tensor, ids: Tensor | None = None) -> QuantizerLosses:
        """The quantizer's training terms for vectors (B, D, h, w); ids (B, h, w) spares the search."""
        return self.quantizer.losses(pre_quant, ids)

    def forward(self, images: Tensor) -> VQOutput:
        """One training pass over images (B, 3, H, W) in [-1, 1]."""
        encoded = self.encode(images)
        return VQOutput(self.decode(encoded.quantized), encoded, self.quantizer_losses(encoded.pre_quant, encoded.ids))


def _set_dropout(network: nn.Module, share: float) -> None:
    """Of every residual block; diffusers' encoder and decoder have no argument for it."""
    from diffusers.models.resnet import ResnetBlock2D

    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            module.dropout.p = share


@torch.no_grad()
def nearest_init(conv: nn.Conv2d, area: int) -> None:
    """Make the `area` channels of each pixel-shuffle group alike: it then starts as nearest-neighbour up-sampling.

    ICNR (arXiv 1707.02937): no checkerboard at the start of training. area 1 changes nothing.
    """
    assert conv.bias is not None, "a convolution without bias, expected one with it"
    for tensor in (conv.weight, conv.bias):
        tensor.copy_(tensor[::area].repeat_interleave(area, 0))
