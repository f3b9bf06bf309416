"""Samplers of the latent decoder: diffusers' DDIM, the published consistency chain, and noise by image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lactok.models.samplers import (
    TLCM_GRID,
    NoiseSchedule,
    Predict,
    Sampler,
    consistency,
    consistency_sampler,
    ddim,
    ddim_sampler,
    ddim_timesteps,
    image_noise,
    one_step,
    tlcm_timesteps,
)

GOLDEN = Path(__file__).parent / "golden" / "lactok"
SHAPE = (4, 8, 8)
SCHEDULE = NoiseSchedule()
SAMPLERS = [ddim_sampler(5), consistency_sampler((999,)), consistency_sampler((999, 499, 124))]


def network(x: Tensor, t: int) -> Tensor:
    """Some function of latents and time that is not linear, and no image's depends on another's."""
    return torch.tanh(x + t / 500) * 0.9 + 0.1 * x.roll(1, -1)


def oracle(clean: Tensor) -> Predict:
    """The noise prediction of a network that knows the image."""

    def predict(x: Tensor, t: int) -> Tensor:
        alpha, sigma = SCHEDULE.alpha_sigma(t)
        return (x - alpha * clean) / sigma

    return predict


def noises(sampler: Sampler, seeds: list[int]) -> Tensor:
    return torch.stack([image_noise(seed, SHAPE, sampler.draws) for seed in seeds])


def scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def test_schedule_is_the_published_one():
    stored = load_file(GOLDEN / "schedule.safetensors")
    assert torch.equal(SCHEDULE.alphas_cumprod, stored["alphas_cumprod"])
    assert torch.equal(SCHEDULE.alphas_cumprod, scheduler().alphas_cumprod)
    assert stored["timestep_grid"].tolist() == list(TLCM_GRID)
    for t, alpha, sigma in ((999, 0.068265, 0.997667), (499, 0.526944, 0.849900), (124, 0.929197, 0.369585)):
        assert [round(v.item(), 6) for v in SCHEDULE.alpha_sigma(t)] == [alpha, sigma]


def test_schedule_made_under_the_meta_device_has_values():
    schedule = NoiseSchedule(0.001, 0.01, 10)
    with torch.device("meta"):
        assert schedule.alphas_cumprod[0].item() == pytest.approx(0.999)


def test_noising_and_its_inverse_take_one_timestep_or_one_a_picture():
    clean, noise = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([999, 3, 500])
    mixed = SCHEDULE.noised(clean, noise, times)
    assert torch.equal(mixed, scheduler().add_noise(clean, noise, times))
    for i, t in enumerate(times.tolist()):
        torch.testing.assert_close(mixed[i : i + 1], SCHEDULE.noised(clean[i : i + 1], noise[i : i + 1], t))
    torch.testing.assert_close(SCHEDULE.clean(mixed, noise, times), clean, rtol=0, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 3, 7, 25, 30, 50])
def test_ddim_is_that_of_diffusers(steps: int):
    theirs = scheduler()
    theirs.set_timesteps(steps)
    assert ddim_timesteps(steps) == tuple(theirs.timesteps.tolist())
    start = noises(ddim_sampler(steps), [0, 1])
    x = start[:, 0] * theirs.init_noise_sigma
    for t in theirs.timesteps:
        x = theirs.step(network(x, int(t)), t, x).prev_sample
    ours = ddim(network, start, SCHEDULE, steps)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-4 * x.abs().max().item())


def test_consistency_chain_by_hand():
    init, first, second = (torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(3))
    alphas, x = SCHEDULE.alphas_cumprod, init
    for t, following, fresh in ((999, 499, first), (499, 124, second), (124, None, None)):
        clean = (x - (1 - alphas[t]).sqrt() * network(x, t)) / alphas[t].sqrt()
        if following is not None:
            x = alphas[following].sqrt() * clean + (1 - alphas[following]).sqrt() * fresh
    drawn = torch.stack([init, first, second], 1)
    torch.testing.assert_close(consistency(network, drawn, SCHEDULE, (999, 499, 124)), clean)


def test_one_step_is_one_evaluation_from_pure_noise():
    drawn, calls = noises(SAMPLERS[1], [3]), []

    def predict(x: Tensor, t: int) -> Tensor:
        calls.append((t, torch.equal(x, drawn[:, 0])))
        return network(x, t)

    alone = one_step(predict, drawn, SCHEDULE)
    assert calls == [(999, True)]
    assert torch.equal(alone, SAMPLERS[1](network, drawn, SCHEDULE))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_network_that_knows_the_picture_gives_it(sampler: Sampler):
    clean = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(9))
    result = sampler(oracle(clean), noises(sampler, [1, 2]), SCHEDULE)
    # DDIM ends at alpha_0, where a little noise is left
    torch.testing.assert_close(result, clean, rtol=0, atol=0.15 if sampler is SAMPLERS[0] else 1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batch_and_order_do_not_matter_and_the_seed_does(sampler: Sampler):
    seeds = [5, 6, 7, 8]
    together = sampler(network, noises(sampler, seeds), SCHEDULE)
    for order in ([2], [3, 1], [0, 2, 1, 3]):
        some = sampler(network, noises(sampler, [seeds[i] for i in order]), SCHEDULE)
        torch.testing.assert_close(some, together[order], rtol=1e-6, atol=1e-6)
    assert (together[0] - together[1]).abs().mean() > 0.1


def test_fresh_noises_count():
    sampler = SAMPLERS[2]
    drawn = noises(sampler, [1])
    for i in range(sampler.draws):
        other = drawn.clone()
        other[:, i] += 1
        assert not torch.allclose(sampler(network, other, SCHEDULE), sampler(network, drawn, SCHEDULE), atol=1e-2)


def test_noise_of_a_picture_follows_from_its_seed_and_not_from_the_count():
    one, three = image_noise(11, SHAPE, 1), image_noise(11, SHAPE, 3)
    assert three.shape == (3, *SHAPE)
    assert torch.equal(one[0], three[0])
    assert torch.equal(image_noise(11, (3,), 2)[:1], image_noise(11, (3,), 1))  # sizes that are no multiple of 16 too
    assert not torch.equal(three[0], three[1])
    assert not torch.equal(image_noise(12, SHAPE, 1), one)
    state = torch.get_rng_state()
    image_noise(2**63 - 1, SHAPE, 2)
    assert torch.equal(torch.get_rng_state(), state)
    many = image_noise(0, (4, 64, 64), 4)
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02


def test_low_precision_predictions_are_taken_up_in_float32():
    for sampler in SAMPLERS:
        drawn = noises(sampler, [1])
        result = sampler(lambda x, t: network(x, t).bfloat16(), drawn.bfloat16(), SCHEDULE)
        assert result.dtype == torch.float32
        rounded = sampler(lambda x, t: network(x, t).bfloat16().float(), drawn.bfloat16().float(), SCHEDULE)
        assert torch.equal(result, rounded)


def test_gradients_reach_the_last_evaluation_alone_when_the_others_are_cut():
    weight = torch.ones(2, requires_grad=True)
    timesteps = (999, 499)

    def predict(x: Tensor, t: int) -> Tensor:
        with torch.set_grad_enabled(t == timesteps[-1]):
            return network(x, t) * weight[timesteps.index(t)]

    consistency(predict, noises(consistency_sampler(timesteps), [0]), SCHEDULE, timesteps).square().mean().backward()
    assert weight.grad[0] == 0
    assert weight.grad[1] != 0


def test_timesteps_of_tlcm():
    assert tlcm_timesteps(1) == (999,)
    assert tlcm_timesteps(2) == (999, 499)
    assert tlcm_timesteps(3) == (999, 499, 124)
    assert tlcm_timesteps(7) == (999, 749, 624, 499, 374, 249, 124)
    for steps in range(1, 8):
        assert consistency_sampler(tlcm_timesteps(steps)).draws == steps


def test_what_can_not_be_sampled_is_named():
    with pytest.raises(ValueError, match="8 steps: TLCM's published grids have 1 to 7"):
        tlcm_timesteps(8)
    for steps in (0, 1000, -1):
        with pytest.raises(ValueError, match=f"{steps} steps: expected 1 to 999"):
            ddim_sampler(steps)
    for timesteps in ((), (499, 999), (999, 999), (5, -1), (1000,)):
        with pytest.raises(ValueError, match="one or more, falling, from 999 to 0"):
            consistency_sampler(timesteps)
    with pytest.raises(ValueError, match=r"noises of shape \(1, 1, 4, 8, 8\), expected \(B, 3, C, h, w\)"):
        SAMPLERS[2](network, torch.zeros(1, 1, *SHAPE), SCHEDULE)
    with pytest.raises(ValueError, match=r"expected \(B, 1, C, h, w\)"):
        SAMPLERS[0](network, torch.zeros(1, *SHAPE), SCHEDULE)
