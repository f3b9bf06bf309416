"""What people would like: the project's preference judges, by registered name, each with the score to exceed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lactok.data.construct.items import WorkItem
from lactok.data.construct.spec import Spec, SpecError
from lactok.data.construct.stages import StageWork


def classes(spec: Spec) -> dict[str, Any]:
    """The judges' classes by name. Raises RegistryError; SpecError for a metric that rates no image with its prompt."""
    from lactok import registry

    found = {name: registry.load("metrics", name) for name in spec.judges}
    for name, cls in found.items():
        if not hasattr(cls, "rate"):
            raise SpecError(
                f"judges: {name} rates no image with its caption: expected imagereward, mps or another judge"
            )
    return found


def models(spec: Spec) -> dict[str, Any]:
    """What build.json says of each judge: the sha256 of its files, or the revision where it is not here."""
    from lactok.weights import identity_of

    made = {}
    for name, cls in classes(spec).items():
        made[name] = {"name": name, "version": cls.version, "sha256": [identity_of(source) for source in cls.weights()]}
    return made


class Judges(StageWork):
    """Scores every image with its new caption, by one judge after the other; one that does not exceed a threshold is
    dropped, and the judges after it are spared."""

    name = "judge"

    def __init__(self, spec: Spec) -> None:
        import torch

        self.batch, self.thresholds = spec.stages.judge.batch, spec.judges
        self.at = torch.device("cuda" if spec.stages.judge.gpus else "cpu")
        self.judges = {name: cls.build(self.at, {}) for name, cls in classes(spec).items()}

    def device(self) -> str:
        import torch

        return torch.cuda.get_device_name() if self.at.type == "cuda" else "cpu"

    def work(self, items: Sequence[WorkItem]) -> None:
        import torch

        pictures = {}
        for item in items:
            if (pixels := item.decoded()) is not None:
                pictures[item.index] = torch.from_numpy(pixels).permute(2, 0, 1)
        for name, judge in self.judges.items():
            left = [item for item in items if not item.reason]
            if not left:
                return
            values = judge.rate([pictures[i.index] for i in left], [i.caption for i in left], self.batch).tolist()
            for item, value in zip(left, values, strict=True):
                item.scores[name] = round(value, 6)
                if not value > self.thresholds[name]:  # NaN does not exceed
                    item.drop(f"score: {name}", f"{value:.4f}, must exceed {self.thresholds[name]:g}")
