"""What a diffusion network predicts, turned into the noise that the samplers want: the noise itself, or the velocity.

v = alpha_t noise - sigma_t x_0 (arXiv 2202.00512, section 4 and appendix D). SDXL predicts the noise, of which an error
grows 15-fold on the way to x_0 at t = 999 where few-step samplers start. A large network affords it; the miniatures
predict the velocity, whose error in x_0 never exceeds its own.
"""

from __future__ import annotations

from torch import Tensor

from lactok.models.samplers import NoiseSchedule

PREDICTIONS = ("epsilon", "v_prediction")
"""By diffusers' names."""


def require_prediction(prediction: str) -> None:
    """Raises ValueError unless it is one."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction={prediction}: expected {' or '.join(PREDICTIONS)}")


def noise_of(output: Tensor, sample: Tensor, t: int | Tensor, prediction: str, schedule: NoiseSchedule) -> Tensor:
    """The noise in `sample` (B, C, H, W) at timestep t by the network's output; of a velocity in float32.

    schedule: with which the network was trained.
    """
    if prediction == "epsilon":
        return output
    alpha, sigma = schedule.alpha_sigma(t)
    return alpha * output.float() + sigma * sample.float()


def squared_errors(predicted: Tensor, noise: Tensor, t: Tensor, prediction: str, schedule: NoiseSchedule) -> Tensor:
    """Squared error (B,) of what the network predicts, from predicted and true noise (B, C, H, W) at timesteps (B,)."""
    errors = (predicted.float() - noise).square().mean((1, 2, 3))
    if prediction == "epsilon":
        return errors
    alpha, _ = schedule.alpha_sigma(t)  # at the same x_t an error of the velocity is alpha times as large in the noise
    return errors / alpha.flatten().square()
