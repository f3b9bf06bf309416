"""The two accelerators by name, and the timesteps that each evaluates."""

from __future__ import annotations

from lactok.models.samplers import FIRST_TIMESTEP, tlcm_timesteps

ACCELERATORS = ("hypersd", "tlcm")


def require_accelerator(name: str | None) -> str:
    """The name. Raises ValueError unless it is an accelerator's."""
    if name is None or name not in ACCELERATORS:
        seen = "none is named" if name is None else f"accelerator={name}"
        raise ValueError(f"{seen}: expected accelerator={' or accelerator='.join(ACCELERATORS)}")
    return name


def evaluated_timesteps(accelerator: str, evaluations: int) -> tuple[int, ...]:
    """(999,) for hypersd; for tlcm those of its published grid. Raises ValueError for a number that it lacks."""
    return (FIRST_TIMESTEP,) if accelerator == "hypersd" else tlcm_timesteps(evaluations)
