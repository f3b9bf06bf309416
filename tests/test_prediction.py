"""Networks that predict the velocity instead of the noise: the same samplers, the error that they are trained on."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lactok.models.lactok import LacTokConfig, build_lactok
from lactok.models.ladd import LatentDecoder
from lactok.models.latent_diffusion import LatentDiffusionConfig, predict_noise
from lactok.models.prediction import noise_of, squared_errors
from lactok.models.samplers import NoiseSchedule, consistency_sampler, ddim
from tests.ladd_support import SMALL

SDXL, OTHER = NoiseSchedule(), NoiseSchedule(0.0001, 0.02)
"""The default, and one that is not: its alpha at t = 999 is 0.02 where the default's is 0.068."""


@pytest.fixture(scope="module", params=[SDXL, OTHER], ids=["SDXL's", "another"])
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return request.param


@pytest.fixture(scope="module")
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean latents, noise, and one timestep an image, the last few-step samplers' first."""
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return clean, noise, torch.tensor([1, 499, 999])


def velocity(clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, schedule: NoiseSchedule) -> torch.Tensor:
    alpha, sigma = schedule.alpha_sigma(t)
    return alpha * noise - sigma * clean


def test_a_network_that_knows_the_velocity_gives_noise_and_picture(case, schedule):
    clean, noise, t = case
    x = schedule.noised(clean, noise, t)
    seen = noise_of(velocity(clean, noise, t, schedule), x, t, "v_prediction", schedule)
    torch.testing.assert_close(seen, noise, atol=1e-5, rtol=0)
    torch.testing.assert_close(schedule.clean(x, seen, t), clean, atol=2e-5, rtol=0)
    assert noise_of(noise, x, t, "epsilon", schedule) is noise


def test_the_error_is_that_of_what_the_network_predicts(case, schedule):
    clean, noise, t = case
    x, off = schedule.noised(clean, noise, t), 0.1 * torch.ones_like(clean)
    as_velocity = noise_of(velocity(clean, noise, t, schedule) + off, x, t, "v_prediction", schedule)
    torch.testing.assert_close(
        squared_errors(as_velocity, noise, t, "v_prediction", schedule), torch.full((3,), 0.01), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(
        squared_errors(noise + off, noise, t, "epsilon", schedule), torch.full((3,), 0.01), rtol=1e-3, atol=0
    )


def test_an_error_at_the_start_of_few_step_samplers_does_not_grow(case):
    (clean, noise, t), schedule = case, SDXL
    x, off = schedule.noised(clean, noise, t), 0.1 * torch.ones_like(clean)
    from_velocity = (
        schedule.clean(x, noise_of(velocity(clean, noise, t, schedule) + off, x, t, "v_prediction", schedule), t)
        - clean
    )
    from_noise = schedule.clean(x, noise + off, t) - clean
    assert from_velocity[2].abs().max() < 0.11
    assert from_noise[2].abs().min() > 1.4


@pytest.mark.parametrize("t", [999, torch.tensor([10, 999])])
def test_both_networks_turn_their_output_into_noise(t, schedule):
    changed = dataclasses.replace(SMALL.decoder, prediction="v_prediction", schedule=schedule)
    decoder = LatentDecoder(changed).eval()
    sample = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    codes = torch.zeros(2, 4, 2, 2)
    alpha, sigma = schedule.alpha_sigma(t)
    with torch.no_grad():
        got = decoder.predict(sample, t, codes)
        plain = LatentDecoder(SMALL.decoder, decoder.unet, decoder.controlnet).predict(sample, t, codes)
        torch.testing.assert_close(got, alpha * plain + sigma * sample)
        config = LatentDiffusionConfig(SMALL.decoder.unet, SMALL.decoder.text_positions, 2, "v_prediction", schedule)
        torch.testing.assert_close(predict_noise(decoder.unet, config, sample, t), got, atol=1e-5, rtol=1e-4)


def test_a_sampler_finds_the_image_of_a_network_that_knows_the_velocity_of_its_schedule(case, schedule):
    """Steps of DDIM end in the image only if conversion and sampler mean the same schedule."""
    clean, noise, _ = case

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        alpha, sigma = schedule.alpha_sigma(t)
        in_x = (x - alpha * clean) / sigma
        return noise_of(alpha * in_x - sigma * clean, x, t, "v_prediction", schedule)

    found = ddim(predict, noise[:, None], schedule, steps=10)
    assert (found - clean).abs().mean() < 0.05


def test_a_whole_lactok_decodes_by_the_schedule_of_its_configuration():
    """Written from a checkpoint's header; its UNet is told nothing else of it than the noise that it sees."""
    header = dataclasses.asdict(dataclasses.replace(SMALL.decoder, prediction="v_prediction", schedule=OTHER))
    config = LacTokConfig(dataclasses.asdict(SMALL.vq), header, dataclasses.asdict(SMALL.autoencoder))
    assert config.schedule == OTHER
    torch.manual_seed(0)
    model = build_lactok(config).eval()
    embeddings, noises = torch.zeros(1, 4, 2, 2), torch.randn(1, 1, 4, 8, 8)
    with torch.no_grad():
        found = model.decode_latents(embeddings, noises, consistency_sampler((999,)))
        network = LatentDecoder(SMALL.decoder, model.decoder.unet, model.decoder.controlnet)
        output = network.predict(noises[:, 0], 999, embeddings)
    alpha, sigma = OTHER.alpha_sigma(999)
    torch.testing.assert_close(found, alpha * noises[:, 0] - sigma * output, atol=1e-4, rtol=1e-4)


def test_another_prediction_is_refused():
    with pytest.raises(ValueError, match="prediction=sample: expected epsilon or v_prediction"):
        LatentDiffusionConfig(prediction="sample")
    with pytest.raises(ValueError, match="expected epsilon or v_prediction"):
        dataclasses.replace(SMALL.decoder, prediction="sample")
