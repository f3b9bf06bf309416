"""CIELAB under D65 (2 degree observer) and the CIEDE2000 colour difference, float64.

Equal to scikit-image's `rgb2lab` and `deltaE_ciede2000`, whose rounded constants these are: with unrounded ones dark
colours differ by up to 4e-5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Linear sRGB to XYZ, and D65's white (IEC 61966-2-1; digits as in scikit-image).
XYZ_FROM_RGB = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)
# CIE 15: below THRESHOLD the cube root gives way to a line.
THRESHOLD, SLOPE, OFFSET = 0.008856, 7.787, 16 / 116
POWER_25_7 = 25.0**7  # chroma at which CIEDE2000's corrections of a* and of blue hues set in


def linear_light(srgb: Tensor) -> Tensor:
    """sRGB values, 0 to 1, to linear light, 0 to 1 (IEC 61966-2-1); float64."""
    srgb = srgb.double()
    return torch.where(srgb > 0.04045, ((srgb + 0.055) / 1.055) ** 2.4, srgb / 12.92)


def lab_of_linear(rgb: Tensor) -> Tensor:
    """Linear light (..., 3), 0 to 1, to L* (0 to 100), a*, b*: float64 (..., 3)."""
    r, g, b = rgb.double().unbind(-1)
    relative = ((x * r + y * g + z * b) / white for (x, y, z), white in zip(XYZ_FROM_RGB, WHITE, strict=True))
    x, y, z = (torch.where(t > THRESHOLD, t.pow(1 / 3), SLOPE * t + OFFSET) for t in relative)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=-1)


def ciede2000(first: Tensor, second: Tensor) -> Tensor:
    """CIEDE2000 with kL = kC = kH = 1 of L*a*b* (..., 3): float64 (...), 0 for equal colours; symmetric.

    Sharma, Wu and Dalal (2005), "The CIEDE2000 color-difference formula", whose names the variables have.
    """
    (l1, a1, b1), (l2, a2, b2) = (lab.double().unbind(-1) for lab in (first, second))
    stretch = 1.5 - 0.5 * _saturation((torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2)  # 1 + G
    c1, c2 = torch.hypot(stretch * a1, b1), torch.hypot(stretch * a2, b2)
    h1, h2 = (torch.atan2(b, stretch * a).remainder(2 * math.pi) for a, b in ((a1, b1), (a2, b2)))
    grey = c1 * c2 == 0  # one of them has no hue
    across = (h2 - h1).abs() > math.pi  # the shorter way between the hues passes 0
    turn = across.double() * (2 * math.pi)
    dh = torch.where(grey, 0.0, h2 - h1 - turn * (h2 - h1).sign())
    h_sum = h1 + h2
    h_mean = torch.where(grey, h_sum, (h_sum + torch.where(h_sum < 2 * math.pi, turn, -turn)) / 2)
    l_mean, c_mean = (l1 + l2) / 2, (c1 + c2) / 2

    t = (
        1
        - 0.17 * torch.cos(h_mean - math.radians(30))
        + 0.24 * torch.cos(2 * h_mean)
        + 0.32 * torch.cos(3 * h_mean + math.radians(6))
        - 0.20 * torch.cos(4 * h_mean - math.radians(63))
    )
    from_middle = (l_mean - 50).square()
    lightness = (l2 - l1) / (1 + 0.015 * from_middle / (20 + from_middle).sqrt())
    chroma = (c2 - c1) / (1 + 0.045 * c_mean)
    hue = 2 * (c1 * c2).sqrt() * torch.sin(dh / 2) / (1 + 0.015 * c_mean * t)
    d_theta = math.radians(30) * torch.exp(-(((torch.rad2deg(h_mean) - 275) / 25).square()))
    rotation = -torch.sin(2 * d_theta) * 2 * _saturation(c_mean)
    squared = lightness.square() + chroma.square() + hue.square() + rotation * chroma * hue
    return squared.clamp_min(0).sqrt()


def _saturation(chroma: Tensor) -> Tensor:
    """sqrt(C^7 / (C^7 + 25^7)), 0 to 1."""
    power = chroma**7
    return (power / (power + POWER_25_7)).sqrt()
