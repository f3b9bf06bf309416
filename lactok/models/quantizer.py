"""Nearest-code vector quantizer with an optional l2-normalised codebook, and its training losses.

The published one is LlamaGen's (FoundationVision/LlamaGen, tokenizer/tokenizer_image/vq_model.py; arXiv 2406.06525
section 2.1), whose codebook LacTok takes over.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

USAGE_WINDOW = 65536
"""How many of the latest ids count for codebook usage (length of the published `codebook_used` buffer)."""

ENTROPY_TEMPERATURE = 0.01
"""Divides the negative distances before the softmax of the entropy term (published code)."""

ENTROPY_EPS = 1e-5
"""Added inside the logarithm of the mean assignment (published code)."""


@dataclass(frozen=True)
class QuantizerLosses:
    """Scalars, already weighted, to be added up by `total`.

    codebook: mean (code - sg(z))^2; commitment: beta x mean (sg(code) - z)^2; entropy: ratio x (mean entropy of the
    assignments - entropy of the mean assignment), 0 where the ratio is 0.
    usage: distinct values among the last USAGE_WINDOW ids / codebook size, as the published code counts (slots that
    were never written hold 0, so id 0 counts until they are filled); None in eval mode or where the quantizer keeps
    no record.
    """

    codebook: Tensor
    commitment: Tensor
    entropy: Tensor
    usage: float | None

    @property
    def total(self) -> Tensor:
        return self.codebook + self.commitment + self.entropy


class VectorQuantizer(nn.Module):
    """Vectors (B, D, h, w) to ids (B, h, w) and back, computed in float32 whatever the dtype around it.

    codebook_size, dim: shape of the codebook; l2_norm: compare and return unit vectors.
    beta: weight of the commitment term; entropy_ratio: weight of the entropy term.
    track_usage: keep the float buffer `codebook_used` of the latest ids, which published checkpoints hold.
    """

    codebook_used: Tensor

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        l2_norm: bool = True,
        beta: float = 0.25,
        entropy_ratio: float = 0.0,
        track_usage: bool = True,
    ) -> None:
        super().__init__()
        self.codebook_size, self.dim, self.l2_norm = codebook_size, dim, l2_norm
        self.beta, self.entropy_ratio, self.track_usage = beta, entropy_ratio, track_usage
        self.embedding = nn.Embedding(codebook_size, dim)
        with torch.no_grad():  # published initialisation
            self.embedding.weight.uniform_(-1 / codebook_size, 1 / codebook_size)
            self.embedding.weight.copy_(self._unit(self.embedding.weight))
        if track_usage:
            self.register_buffer("codebook_used", torch.zeros(USAGE_WINDOW))

    def _unit(self, vectors: Tensor) -> Tensor:
        vectors = vectors.float()
        return F.normalize(vectors, dim=-1, eps=1e-12) if self.l2_norm else vectors

    @property
    def codebook(self) -> Tensor:
        """The codes as they are compared and returned: float32 (codebook_size, D), unit length with l2_norm."""
        return self._unit(self.embedding.weight)

    def _rows(self, pre_quant: Tensor) -> Tensor:
        """(B, D, h, w) to (B h w, D) in the order of the ids, normalised."""
        return self._unit(pre_quant.permute(0, 2, 3, 1).reshape(-1, self.dim))

    def _distances(self, rows: Tensor) -> Tensor:
        """Squared distances of rows (M, D) to every code: (M, codebook_size), by the published expansion."""
        codes = self.codebook
        meta = rows.device.type == "meta"  # which has no autocast to switch off
        with nullcontext() if meta else torch.autocast(rows.device.type, enabled=False):
            return rows.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * rows @ codes.T

    @torch.no_grad()
    def search(self, pre_quant: Tensor) -> Tensor:
        """Nearest codes: (B, D, h, w) to int64 ids (B, h, w).

        Raises FloatingPointError for vectors that are not finite; in train mode the loss tells of them.
        """
        if not self.training:
            require_finite(pre_quant, "the encoder's vectors")
        batch, _, height, width = pre_quant.shape
        # image by image: bounded memory, and an image's ids do not depend on what else is in the batch
        ids = [self._distances(self._rows(one[None])).argmin(1) for one in pre_quant]
        return torch.stack(ids).view(batch, height, width)

    def lookup(self, ids: Tensor) -> Tensor:
        """Codes of int64 ids (B, h, w): float32 (B, D, h, w)."""
        return F.embedding(ids, self.codebook).permute(0, 3, 1, 2)

    def forward(self, pre_quant: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize (B, D, h, w): the codes with the straight-through gradient, float32 (B, D, h, w), and the ids."""
        ids = self.search(pre_quant)
        z = self._rows(pre_quant).view(*ids.shape, self.dim).permute(0, 3, 1, 2)
        return z + (self.lookup(ids) - z).detach(), ids

    def losses(self, pre_quant: Tensor, ids: Tensor | None = None) -> QuantizerLosses:
        """Training terms for (B, D, h, w); ids (B, h, w) spares the search. In train mode it records the ids."""
        ids = self.search(pre_quant) if ids is None else ids
        z = self._rows(pre_quant)
        codes = F.embedding(ids.reshape(-1), self.codebook)
        return QuantizerLosses(
            codebook=(codes - z.detach()).square().mean(),
            commitment=self.beta * (codes.detach() - z).square().mean(),
            entropy=self.entropy_ratio * self._entropy(z) if self.entropy_ratio else z.new_zeros(()),
            usage=self._record(ids) if self.training and self.track_usage else None,
        )

    def _entropy(self, rows: Tensor) -> Tensor:
        log_probs = F.log_softmax(-self._distances(rows) / ENTROPY_TEMPERATURE, dim=1)
        mean = log_probs.exp().mean(0)
        of_samples = -(log_probs.exp() * log_probs).sum(1).mean()
        of_mean = -(mean * (mean + ENTROPY_EPS).log()).sum()
        return of_samples - of_mean

    @torch.no_grad()
    def _record(self, ids: Tensor) -> float:
        latest = torch.cat([self.codebook_used, ids.reshape(-1).to(self.codebook_used)])[-USAGE_WINDOW:]
        self.codebook_used.copy_(latest)
        return len(latest.unique()) / self.codebook_size


def require_finite(vectors: Tensor, what: str) -> None:
    """Raises FloatingPointError naming how many values, of which images, are not finite.

    vectors: float (B, ...), one image a row; what: their name in the message. A tensor without memory passes.
    """
    if vectors.device.type == "meta":
        return
    finite = vectors.isfinite()
    if finite.all():
        return
    bad = [place for place, row in enumerate(finite.flatten(1).all(1).tolist()) if not row]
    shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
    raise FloatingPointError(
        f"{int((~finite).sum()):,} of {finite.numel():,} values of {what} are not finite (NaN or infinite), in "
        f"image(s) {shown} of a batch of {len(finite)}: they have no id. The encoder's weights are damaged, or its "
        f"{str(vectors.dtype).removeprefix('torch.')} numbers overflow: verify the checkpoint, or run at precision=fp32"
    )
