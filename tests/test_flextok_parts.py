"""The functions that FlexTok is made of: quantizer, masks, patches, guidance, Euler steps."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from baselines.tokenizers.flextok import fsq
from baselines.tokenizers.flextok.config import FlexTokConfig, TransformerConfig, VAEConfig
from baselines.tokenizers.flextok.model import register_mask
from baselines.tokenizers.flextok.sampler import ProjectedGuidance, Sampling, plain_guidance, projected_guidance, sample
from baselines.tokenizers.flextok.transformer import patchify, unpatchify

LEVELS = (8, 8, 8, 5, 5, 5)


def test_every_id_has_one_code():
    ids = torch.arange(64000)
    codes = fsq.codes_of(ids, LEVELS)
    assert codes.abs().max() == 1
    assert len(codes.unique(dim=0)) == 64000
    counts = torch.tensor(LEVELS, dtype=torch.float64)
    half = (counts - 1) * (1 + fsq.MARGIN) / 2
    offset = torch.where(counts % 2 == 0, 0.5, 0.0)
    latents = ((codes * (counts // 2) + offset) / half).atanh() - (offset / half).atanh()  # undoes the squeezing
    again, found = fsq.quantize(latents, LEVELS)
    assert torch.equal(found, ids)
    assert torch.equal(again, codes)


def test_the_gradient_passes_the_rounding():
    latents = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    fsq.quantize(latents, LEVELS)[0].sum().backward()
    through, latents.grad = latents.grad, None
    (fsq.bound(latents, LEVELS) / (torch.tensor(LEVELS) // 2)).sum().backward()
    torch.testing.assert_close(through, latents.grad)


def test_registers_look_back_and_patches_do_not_look_at_them():
    mask = register_mask(patches=3, registers=2, device=torch.device("cpu"))
    assert mask[:, :3].all()
    assert mask[:, 3:].tolist() == [[False, False]] * 3 + [[True, False], [True, True]]


def test_patches_and_back():
    latents = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    patches = patchify(latents, 2)
    assert patches.shape == (2, 6, 12)
    assert torch.equal(patches[0, 1, :3], latents[0, :, 0, 2])  # second patch of the first row; channels last
    assert torch.equal(unpatchify(patches, 2, 4, 6), latents)


def test_euler_steps_and_guidance():
    times = []

    def predict(x, time):
        times.append(time.item())
        return torch.ones_like(x), None

    noise = torch.randn(2, 1, 2, 2)
    torch.testing.assert_close(sample(predict, noise, Sampling(4, 1.0)), noise - 1)
    assert times == [1, 0.75, 0.5, 0.25]
    assert plain_guidance(torch.tensor(3.0), torch.tensor(1.0), 2.0) == 5


def test_projected_guidance_by_hand():
    """Two numbers an image: what is parallel to the conditional velocity goes, the rest is clipped and added."""
    cond, uncond = (torch.tensor(v).view(-1, 2, 1, 1) for v in ([[1.0, 0.0], [1.0, 0.0]], [[0.0, -1.0], [0.0, -30.0]]))
    settings = ProjectedGuidance(momentum=-0.5, eta=0.0, norm_threshold=2.5)
    guided, running = projected_guidance(cond, uncond, 3.0, settings, None)
    assert guided.flatten(1)[0].tolist() == pytest.approx([1, 2])  # 1 of (1, 1) is kept, times 3 - 1
    assert guided.flatten(1)[1].tolist() == pytest.approx([1, 2 * 2.5 * 30 / math.sqrt(901)])
    guided, _ = projected_guidance(cond, uncond, 3.0, settings, running)
    assert guided.flatten(1)[0].tolist() == pytest.approx([1, 1])  # the difference less half of the one before
    kept, _ = projected_guidance(cond, uncond, 3.0, dataclasses.replace(settings, eta=1.0), None)
    assert kept.flatten(1)[0].tolist() == pytest.approx([3, 2])
    same, _ = projected_guidance(cond, cond, 3.0, settings, None)
    assert torch.equal(same, cond)


def test_the_same_configuration_round_trips_through_json():
    trunk = TransformerConfig(64, 2, head_dim=32)
    config = FlexTokConfig(trunk, trunk, VAEConfig(4, (16, 32), scaling_factor=0.7), registers=16, latent_channels=4)
    assert FlexTokConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    with pytest.raises(ValueError, match="the VAE has 4 latent channels, the transformers 16"):
        dataclasses.replace(config, latent_channels=16)
    with pytest.raises(ValueError, match="dim 100: expected a multiple of head_dim, 64"):
        TransformerConfig(100, 2)
