"""python benchmarks/attention.py: attention with gradients on a CPU, torch's fused kernel against it written out.

Shapes are those of a training step of lactokgen-mini: 64 samples, 4 heads of 36, 87 positions, a mask for padding. Both
ways in one run, in turn; the ratio is what counts. `lactok.models.gpt.Attention` takes the faster one for each dtype.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lactok.models.gpt import attend, padding_mask


def main() -> None:
    """Print milliseconds of a forward and backward pass, the median of the rounds, for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="samples")
    parser.add_argument("--rounds", type=int, default=15, help="of each way")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    length, prefix = 87, 24
    text = torch.arange(prefix).expand(given.batch, -1) >= torch.randint(12, 20, (given.batch, 1))
    mask = padding_mask(text, length)[:, None]
    ways: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "fused": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask),
        "written out": lambda q, k, v: attend(q, k, v, mask, 0.0),
    }
    print(f"torch {torch.__version__}, {given.threads} threads, batch {given.batch}, {given.rounds} rounds of each")
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [torch.randn(given.batch, 4, length, 36, dtype=dtype, requires_grad=True) for _ in range(3)]
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(given.rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way(*inputs).sum().backward()
                times[name].append(time.perf_counter() - start)
        fused, ours = (statistics.median(times[name]) for name in ways)
        print(f"{dtype!s:<16}fused {1000 * fused:.1f} ms, written out {1000 * ours:.1f} ms: {fused / ours:.2f} times")


if __name__ == "__main__":
    main()
