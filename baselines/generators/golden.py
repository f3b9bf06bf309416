"""What the golden cases of generators share: seeded weights with the changes that a case's configuration states."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lactok.conformance import CaseError, CaseFolder
from lactok.seeded import Manifest


def case_weights(
    case: CaseFolder, manifest: Manifest, computed: Callable[[str], Tensor | None] = lambda name: None
) -> dict[str, Tensor]:
    """Seeded weights under the official names, changed as `config.json` says, in the cases' order.

    keep_initial_value: endings of names whose values are not seeded; `computed` gives them, or None for those that the
    port makes itself (they are left out). add_after_seeding: ending of a name to a constant.
    scale_after_seeding: full name to a factor.
    Raises CaseError for an entry that fits no name.
    """
    state, where = case.seeded(manifest, case.setting("weights_seed")), case.path / "config.json"
    for ending in case.config.get("keep_initial_value", []):
        for name in [name for name in manifest if name.endswith(ending)]:
            state.pop(name, None)
            if (value := computed(name)) is not None:
                state[name] = value.to(case.device)
    for ending, constant in case.config.get("add_after_seeding", {}).items():
        for name in [name for name in state if name.endswith(ending)]:
            state[name] = state[name] + constant
    for name, factor in case.config.get("scale_after_seeding", {}).items():
        if name not in manifest:
            continue  # of the folder's other manifest, see `require_known_names`
        if name not in state:
            raise CaseError(f"{where} scales {name}, which has no seeded value")
        state[name] = state[name] * factor
    return state


def require_known_names(case: CaseFolder, *manifests: Manifest) -> None:
    """Raises CaseError where `scale_after_seeding` names a tensor that none of the case's manifests has."""
    for name in case.config.get("scale_after_seeding", {}):
        if not any(name in manifest for manifest in manifests):
            raise CaseError(f"{case.path / 'config.json'} scales {name}, which no manifest has")


def truncated_uint8(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] to uint8 (B, H, W, 3) as the published scripts do: 255 x, truncated."""
    return (images * 255).to(torch.uint8).permute(0, 2, 3, 1)


def only(case: CaseFolder, settings: Mapping[str, object], known: Mapping[str, object] | set[str], where: str) -> None:
    """Raises CaseError naming the settings in `where` of `config.json` that this port does not know."""
    if unknown := sorted(set(settings) - set(known)):
        raise CaseError(f"{case.path / 'config.json'}: {where} has {', '.join(unknown)}, which this port does not know")
