"""What a build needs and this machine or cluster lacks: all of it, with the way to get each, before anything runs."""

from __future__ import annotations

from typing import Any

from lactok import registry
from lactok.data.construct.spec import STAGES, Spec, SpecError
from lactok.weights import WeightsError, missing_files, told


def lacking(spec: Spec) -> list[str]:
    """A line a thing that is missing, each with its stage and the way to get it; [] where the build can run."""
    if spec.recipe == "mini":
        from lactok.feature_extractors.effnet import LITE0

        return [f"judge: {line}" for line in told(missing_files([LITE0], download=False))]
    lines: list[str] = []
    for stage, find in (("synthesise", _synthesiser), ("caption", _captioner), ("judge", _judges)):
        try:
            lines += [f"{stage}: {line}" for line in told(missing_files(find(spec), download=False))]
        except (registry.RegistryError, WeightsError) as error:
            lines.append(f"{stage}: {error}")
    lines = [line.replace("options.NAME.", "options.").replace("metrics=[...]", "judges=[...]") for line in lines]
    return lines + _gpus(spec)


def require(spec: Spec) -> None:
    """Raises SpecError that lists everything that is lacking."""
    if lines := lacking(spec):
        listed = "".join(f"\n  {place}. {line}" for place, line in enumerate(lines, start=1))
        raise SpecError(f"recipe={spec.recipe} can't run here, {len(lines)} thing(s) are missing:{listed}")


def _synthesiser(spec: Spec) -> list[Any]:
    from lactok.data.construct.synthesiser import options_of

    if not spec.captions:
        return []
    cls, options = options_of(spec)
    return list(cls.weights(options))


def _captioner(spec: Spec) -> list[Any]:
    from lactok.data.construct.captioner import weights

    return list(weights(spec))


def _judges(spec: Spec) -> list[Any]:
    from lactok.data.construct.judges import classes

    return [source for cls in classes(spec).values() for source in cls.weights()]


def _gpus(spec: Spec) -> list[str]:
    """The stages that want GPUs, where there is none here and no cluster is named."""
    wanted = {name: stage for name in STAGES if (stage := spec.stage(name)).gpus}
    if spec.address or not wanted:
        return []
    import torch

    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    least = sum(stage.actors[0] * stage.gpus for stage in wanted.values())
    if least <= here:
        return []
    each = ", ".join(f"{name} {stage.actors[0]} x {stage.gpus:g}" for name, stage in wanted.items())
    return [
        f"GPUs: at least {least:g} ({each}), here are {here}: join a cluster by address=HOST:PORT, or set "
        "stages.NAME.gpus to parts of one (captioner=7b fits one GPU; 0 runs a stage on the CPU, for weeks)"
    ]
