"""What generators share around a call: which prompts can be read, and the dtype of the networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from lactok.interface import Item, ItemsRefused
from lactok.tokenizers.checks import require_seeds

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What an option `dtype` may name."""
SHOWN = 60
"""Characters of a prompt in a message."""


def require_dtype(name: str) -> None:
    """Raises ValueError for a name that is none of DTYPES."""
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r}: expected {', '.join(DTYPES)}")


def in_dtype(name: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to that dtype inside the block, whatever the run's precision is; none for float32."""
    return torch.autocast(device.type, DTYPES[name], enabled=name != "float32")


def prompts_of(
    items: Sequence[Item], seeds: Sequence[int], why_not: Callable[[str], str | None] = lambda prompt: None
) -> list[str]:
    """The prompts of a batch. why_not: the reason for which a prompt can't be taken, None for one that can.

    Raises ItemsRefused for text that is no valid Unicode (no tokenizer takes it) and what `why_not` names, ValueError
    where the seeds are not as many.
    """
    require_seeds(seeds, len(items))
    refused = {place: why for place, item in enumerate(items) if (why := _unreadable(item.payload, why_not))}
    if refused:
        raise ItemsRefused(refused)
    return [item.payload for item in items]


def _unreadable(prompt: str, why_not: Callable[[str], str | None]) -> str | None:
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = ascii(prompt[:SHOWN]) + ("..." if len(prompt) > SHOWN else "")
        return f"the prompt {shown} is no valid Unicode at character {error.start}: {error.reason}"
    return why_not(prompt)
