"""What recipes log about reconstructions of the validation pictures."""

from __future__ import annotations

from torch import Tensor


def mean_psnr(outputs: Tensor, images: Tensor) -> float:
    """PSNR in dB of outputs (N, 3, H, W), clamped to [0, 1], against images of that shape; mean over pictures.

    Of floats, not of 8-bit pictures: for a training log, not for a table. At most 100 dB a picture.
    """
    errors = (outputs.clamp(0, 1) - images).square().mean((1, 2, 3))
    return (-10 * errors.clamp_min(1e-10).log10()).mean().item()
