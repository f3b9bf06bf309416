"""How a transformer starts when its training is short: attention that already looks where it should.

Mimetic initialisation (Trockman and Kolter, arXiv 2305.09828): queries and keys alike, values and projection each
other's inverse, so that a token attends to tokens at its own place and takes over what they hold. From a random start
a small model spends its whole training on finding that out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LOWEST, HIGHEST = 0.075, 1.5
"""Angular frequencies of `places`, radians a cell: about one turn over an image's grid to a quarter turn a cell."""


@torch.no_grad()
def mimetic_(query: Tensor, key: Tensor, value: Tensor, projection: Tensor) -> None:
    """Fill the four weights (dim, dim) of a self-attention, in torch's (out, in) layout, in place."""
    nn.init.orthogonal_(query)
    key.copy_(query)
    nn.init.orthogonal_(value)
    projection.copy_(value.T)


def places(dim: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Sines and cosines of places (N,), in cells: float32 (N, dim) with dim a multiple of 4; near ones are alike."""
    frequencies = torch.logspace(0, 1, dim // 4) / 10 * (HIGHEST - LOWEST) + LOWEST
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], 1)
    return torch.cat([angles.sin(), angles.cos()], 1)


def grid_places(dim: int, grid: int) -> Tensor:
    """`places` of the cells of a grid x grid map, row by row: (grid^2, dim)."""
    rows, columns = torch.meshgrid(torch.arange(grid).float(), torch.arange(grid).float(), indexing="ij")
    return places(dim, rows.flatten(), columns.flatten())


def spread_cells(grid: int, count: int) -> Tensor:
    """`count` cells of a grid x grid map, int64 (count,), each as far as can be from all before it; again when used up.

    The first is next to the middle.
    """
    line = torch.arange(grid, device="cpu")  # a choice among numbers that have to be there
    cells = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).flatten(0, 1).float()
    order = [grid // 2 * grid + grid // 2]
    nearest = torch.full((len(cells),), torch.inf, device="cpu")
    while len(order) < min(count, len(cells)):
        nearest = torch.minimum(nearest, (cells - cells[order[-1]]).norm(dim=1))
        order.append(int(nearest.argmax()))
    return torch.tensor(order * (count // len(order) + 1), device="cpu")[:count]
