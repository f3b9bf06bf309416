"""How the embeddings of token ids start where their tokenizer's codebook is known: as its vectors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lactok.models.gpt import GPT
from lactok.models.quantizer import VectorQuantizer

RANDOM_PART = 0.3
"""What stays of the random start of an id's embedding, so that two near vectors are not the same to the network."""


@torch.no_grad()
def start_from_codebook(gpt: GPT, codebook: Tensor) -> None:
    """Set the ids' embeddings and the rows of the output from the codebook (V, D), in place.

    Ids whose vectors point the same way then begin alike, on both sides, and what is learned of one holds for its
    neighbours. Vectors are scaled to length 1 and turned into D random orthogonal directions of the network's width;
    as embeddings they get the length of a random row. Raises ValueError for a codebook of other shape.
    """
    vocabulary, width = gpt.tok_embeddings.weight.shape
    if codebook.shape[0] != vocabulary or codebook.shape[1] > width:
        raise ValueError(
            f"a codebook of {len(codebook)} vectors of width {codebook.shape[1]}: expected {vocabulary}, of at most "
            f"{width}"
        )
    own = torch.Generator().manual_seed(0)  # whatever was drawn before
    directions, _ = torch.linalg.qr(torch.randn(width, codebook.shape[1], generator=own))
    vectors = F.normalize(codebook.float(), dim=1) @ directions.T
    gpt.tok_embeddings.weight.mul_(RANDOM_PART).add_(vectors * gpt.config.initializer_range * width**0.5)
    gpt.output.weight.copy_(vectors)


def codebook_of(networks: Iterable[nn.Module]) -> Tensor | None:
    """The vectors (V, D) of the one vector quantizer in a tokenizer's networks; None where there is none."""
    found = [part for network in networks for part in network.modules() if isinstance(part, VectorQuantizer)]
    return found[0].codebook.detach() if len({id(part) for part in found}) == 1 else None
