"""The VQ network and its quantizer: shapes, gradients, precision, patches; what the golden cases do not show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from lactok.models.quantizer import USAGE_WINDOW, VectorQuantizer
from lactok.models.vq import VQConfig, VQModel

SMALL = VQConfig(ch=32, encoder_ch_mult=(1, 1, 2), decoder_ch_mult=(1, 1, 2), z_channels=32, codebook_size=64)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def photographs(count: int = 3, height: int = 64, width: int = 96) -> Tensor:
    """Cuts of real photographs, float32 (count, 3, height, width) in [-1, 1]."""
    sources = (data.astronaut(), data.coffee(), data.chelsea())
    cuts = [sources[i % 3][20 * i : 20 * i + height, 40 : 40 + width] for i in range(count)]
    return torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).float() / 127.5 - 1


def trained_like(config: VQConfig) -> VQModel:
    """A model whose codes are spread as its encoder's vectors are, so that many ids occur."""
    model = VQModel(config).eval()
    with torch.no_grad():
        vectors = model.pre_quant(photographs(4, 128, 128)).permute(0, 2, 3, 1).reshape(-1, config.codebook_embed_dim)
        model.quant_conv.bias.sub_(vectors.mean(0))
        chosen = torch.randperm(len(vectors))[: config.codebook_size]
        model.quantizer.embedding.weight.copy_(vectors[chosen] - vectors.mean(0))
    return model


def test_published_size():
    with torch.device("meta"):
        model = VQModel()
    assert sum(p.numel() for p in model.parameters()) == 71_883_403
    assert model.downsample_factor == 16
    encoded = model.encode(torch.empty(2, 3, 224, 288, device="meta"))
    assert encoded.ids.shape == (2, 14, 18)
    assert encoded.quantized.shape == encoded.pre_quant.shape == (2, 8, 14, 18)
    assert model.decode(encoded.quantized).shape == (2, 3, 224, 288)


def test_round_trip_of_a_picture_that_is_not_square():
    model = trained_like(SMALL)
    images = photographs()
    with torch.no_grad():
        encoded = model.encode(images)
        assert encoded.ids.shape == (3, 16, 24)
        assert encoded.ids.dtype == torch.int64
        assert len(encoded.ids.unique()) > 10  # else the rest would say little
        torch.testing.assert_close(encoded.quantized, model.lookup(encoded.ids), rtol=0, atol=1e-6)
        torch.testing.assert_close(model.decode(encoded.quantized), model.decode_ids(encoded.ids), rtol=0, atol=1e-4)
        assert model.decode_ids(encoded.ids).shape == images.shape


def test_an_image_does_not_depend_on_its_batch():
    """In float64, where rounding, which differs with the batch's kernels, is far below what a neighbour would add."""
    model, images = trained_like(SMALL).double(), photographs().double()
    with torch.no_grad():
        together = model.encode(images)
        decoded = model.decode_ids(together.ids)
        for i in range(len(images)):
            alone = model.encode(images[i : i + 1])
            assert torch.equal(alone.ids[0], together.ids[i])
            torch.testing.assert_close(model.decode_ids(alone.ids)[0], decoded[i], rtol=0, atol=1e-11)


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="image of 66x64 pixels: both sides must be multiples of 4"):
        VQModel(SMALL).encode(torch.zeros(1, 3, 64, 66))


def test_first_width_is_fixed():
    with pytest.raises(ValueError, match="starts with 2, expected 1"):
        VQConfig(encoder_ch_mult=(2, 4))


@pytest.mark.parametrize("l2_norm", [True, False])
def test_search_finds_the_nearest_code_row_by_row(l2_norm: bool):
    quantizer = VectorQuantizer(12, 5, l2_norm=l2_norm)
    with torch.no_grad():
        quantizer.embedding.weight.normal_()
    ids = torch.randperm(12).view(1, 3, 4)
    scale = torch.rand(1, 1, 3, 4) + 0.5 if l2_norm else 1.0  # length must not matter once normalised
    vectors = F.embedding(ids, quantizer.embedding.weight).permute(0, 3, 1, 2) * scale
    assert torch.equal(quantizer.search(vectors), ids)
    codes = quantizer.lookup(ids)
    assert codes.shape == (1, 5, 3, 4)
    if l2_norm:
        torch.testing.assert_close(codes.norm(dim=1), torch.ones(1, 3, 4))
    else:
        assert torch.equal(codes[0, :, 1, 2], quantizer.embedding.weight[ids[0, 1, 2]])


def test_quantizer_stays_in_float32_under_lower_precision():
    model = trained_like(SMALL)
    vectors = model.pre_quant(photographs(1)).detach().bfloat16()
    want = model.quantizer.search(vectors.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.quantizer.search(vectors), want)
        quantized, _ = model.quantizer(vectors)
    assert quantized.dtype == torch.float32
    low = VQModel(SMALL).bfloat16()
    with torch.no_grad():
        assert low.decode(low.encode(photographs(1).bfloat16()).quantized).dtype == torch.bfloat16


def test_gradients_reach_encoder_decoder_and_codebook():
    model = VQModel(SMALL).train()
    images = photographs(1)
    output = model(images)
    (F.l1_loss(output.reconstruction, images) + output.losses.total).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.encoder.conv_in.weight.grad.abs().max() > 0
    used = model.quantizer.embedding.weight.grad.abs().sum(1).nonzero().flatten()
    assert torch.equal(used, output.encoded.ids.unique())  # only codes that were chosen are moved


def test_straight_through_passes_the_gradient_unchanged():
    quantizer = VectorQuantizer(8, 4, l2_norm=False)
    vectors = torch.randn(1, 4, 2, 2, requires_grad=True)
    weights = torch.randn(1, 4, 2, 2)
    (quantizer(vectors)[0] * weights).sum().backward()
    torch.testing.assert_close(vectors.grad, weights)


def test_losses_by_hand():
    quantizer = VectorQuantizer(4, 2, l2_norm=False, beta=0.25).eval()
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[0.0, 0], [4, 0], [0, 4], [4, 4]]))
    losses = quantizer.losses(torch.tensor([1.0, 0]).view(1, 2, 1, 1))
    assert losses.codebook.item() == 0.5  # ((0 - 1)^2 + 0) / 2
    assert losses.commitment.item() == 0.125
    assert losses.entropy.item() == 0
    assert losses.usage is None
    assert losses.total.item() == 0.625


def test_entropy_term_prefers_sure_and_spread_assignments():
    quantizer = VectorQuantizer(4, 4, entropy_ratio=1.0)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.eye(4))
    spread = torch.eye(4).T.view(1, 4, 2, 2)
    one_code = torch.eye(4)[0].view(1, 4, 1, 1).expand(1, 4, 2, 2)
    assert quantizer.losses(spread).entropy < quantizer.losses(one_code).entropy - 1


def test_usage_is_recorded_in_training_only():
    quantizer = VectorQuantizer(16, 4)
    ids = torch.tensor([3, 5, 5]).view(1, 1, 3)
    vectors = quantizer.lookup(ids).detach()
    assert quantizer.eval().losses(vectors).usage is None
    assert quantizer.codebook_used.count_nonzero() == 0
    assert quantizer.train().losses(vectors).usage == 3 / 16  # 0 of the empty slots, 3, 5
    assert quantizer.codebook_used[-3:].tolist() == [3, 5, 5]
    full = torch.ones(1, 1, USAGE_WINDOW + 5, dtype=torch.int64)
    assert quantizer.losses(quantizer.lookup(full).detach(), full).usage == 1 / 16


def test_patches_add_no_names_and_start_without_a_checkerboard():
    config = VQConfig(
        ch=32, encoder_ch_mult=(1, 2), decoder_ch_mult=(1, 2), z_channels=16, codebook_size=32, patch_size=4
    )
    model = VQModel(config).eval()
    plain = VQModel(VQConfig(**{**config.__dict__, "patch_size": 1}))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model.downsample_factor == 8
    with torch.no_grad():
        output = model(photographs(1))
    assert output.encoded.ids.shape == (1, 8, 12)
    patches = F.pixel_unshuffle(output.reconstruction, 4).unflatten(1, (3, 16))
    assert torch.equal(patches, patches[:, :, :1].expand_as(patches))  # every patch is one colour
    assert output.reconstruction.std() > 0


def test_dropout_acts_in_training_only():
    model = VQModel(VQConfig(**{**SMALL.__dict__, "dropout_p": 0.5}))
    images = photographs(1)
    with torch.no_grad():
        assert not torch.equal(model.train().pre_quant(images), model.pre_quant(images))
        assert torch.equal(model.eval().pre_quant(images), model.pre_quant(images))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_get_no_id(value: float):
    quantizer = VectorQuantizer(16, 4).eval()
    vectors = torch.randn(3, 4, 2, 2)
    vectors[1, 2, 0, 1] = vectors[1, 0, 1, 1] = value
    with pytest.raises(FloatingPointError, match=r"2 of 48 values .* not finite.*image\(s\) 1 of a batch of 3"):
        quantizer.search(vectors)
    assert quantizer.search(vectors[:1]).shape == (1, 2, 2)
