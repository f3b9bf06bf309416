"""Which classes do a recipe's stages, and which models stand behind them."""

from __future__ import annotations

from typing import Any

from lactok.data.construct.spec import Spec


def stages(spec: Spec) -> dict[str, Any]:
    """By the name of a stage, what builds it from the settings in a process of its own."""
    from lactok.data.construct.inspection import Inspection

    if spec.recipe == "mini":
        from lactok.data.construct.miniature import Confidence, LabelCaptioner, SceneSynthesiser

        return {
            "synthesise": SceneSynthesiser,
            "caption": LabelCaptioner,
            "judge": Confidence,
            "inspect": Inspection,
        }
    from lactok.data.construct.captioner import QwenCaptioner
    from lactok.data.construct.judges import Judges
    from lactok.data.construct.synthesiser import GeneratorSynthesiser

    return {
        "synthesise": GeneratorSynthesiser,
        "caption": QwenCaptioner,
        "judge": Judges,
        "inspect": Inspection,
    }


def models(spec: Spec) -> dict[str, Any]:
    """What made, described and chose the images: synthesiser, captioner, judges, each with its revision or hash."""
    if spec.recipe == "mini":
        from lactok.data.construct.miniature import models as of_miniature

        return of_miniature(spec)
    from lactok.data.construct import captioner, judges, synthesiser

    return {
        "synthesiser": synthesiser.model(spec) if spec.captions else {"name": "none"},
        "captioner": captioner.model(spec),
        "judges": judges.models(spec),
    }
