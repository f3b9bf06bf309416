"""Networks that predict the velocity instead of the noise: the same samplers, the error that they are trained on."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lactok.models.ladd import LatentDecoder
from lactok.models.latent_diffusion import LatentDiffusionConfig, predict_noise
from lactok.models.prediction import SCHEDULE, noise_of, squared_errors
from tests.ladd_support import SMALL


@pytest.fixture(scope="module")
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean latents, noise, and one timestep an image, the last few-step samplers' first."""
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return clean, noise, torch.tensor([1, 499, 999])


def velocity(clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    alpha, sigma = SCHEDULE.alpha_sigma(t)
    return alpha * noise - sigma * clean


def test_a_network_that_knows_the_velocity_gives_noise_and_picture(case):
    clean, noise, t = case
    x = SCHEDULE.noised(clean, noise, t)
    seen = noise_of(velocity(clean, noise, t), x, t, "v_prediction")
    torch.testing.assert_close(seen, noise, atol=1e-5, rtol=0)
    torch.testing.assert_close(SCHEDULE.clean(x, seen, t), clean, atol=2e-5, rtol=0)
    assert noise_of(noise, x, t, "epsilon") is noise


def test_the_error_is_that_of_what_the_network_predicts(case):
    clean, noise, t = case
    x, off = SCHEDULE.noised(clean, noise, t), 0.1 * torch.ones_like(clean)
    as_velocity = noise_of(velocity(clean, noise, t) + off, x, t, "v_prediction")
    torch.testing.assert_close(
        squared_errors(as_velocity, noise, t, "v_prediction"), torch.full((3,), 0.01), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(
        squared_errors(noise + off, noise, t, "epsilon"), torch.full((3,), 0.01), rtol=1e-3, atol=0
    )


def test_an_error_at_the_start_of_few_step_samplers_does_not_grow(case):
    clean, noise, t = case
    x, off = SCHEDULE.noised(clean, noise, t), 0.1 * torch.ones_like(clean)
    from_velocity = SCHEDULE.clean(x, noise_of(velocity(clean, noise, t) + off, x, t, "v_prediction"), t) - clean
    from_noise = SCHEDULE.clean(x, noise + off, t) - clean
    assert from_velocity[2].abs().max() < 0.11
    assert from_noise[2].abs().min() > 1.4


@pytest.mark.parametrize("t", [999, torch.tensor([10, 999])])
def test_both_networks_turn_their_output_into_noise(t):
    decoder = LatentDecoder(dataclasses.replace(SMALL.decoder, prediction="v_prediction")).eval()
    sample = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    codes = torch.zeros(2, 4, 2, 2)
    alpha, sigma = SCHEDULE.alpha_sigma(t)
    with torch.no_grad():
        got = decoder.predict(sample, t, codes)
        plain = LatentDecoder(SMALL.decoder, decoder.unet, decoder.controlnet).predict(sample, t, codes)
        torch.testing.assert_close(got, alpha * plain + sigma * sample)
        config = LatentDiffusionConfig(SMALL.decoder.unet, SMALL.decoder.text_positions, 2, "v_prediction")
        torch.testing.assert_close(predict_noise(decoder.unet, config, sample, t), got, atol=1e-5, rtol=1e-4)


def test_another_prediction_is_refused():
    with pytest.raises(ValueError, match="prediction=sample: expected epsilon or v_prediction"):
        LatentDiffusionConfig(prediction="sample")
    with pytest.raises(ValueError, match="expected epsilon or v_prediction"):
        dataclasses.replace(SMALL.decoder, prediction="sample")
