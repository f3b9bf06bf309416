"""The suites: which task and rows each has and, of the paper's tables, which datasets. The one place that knows them.

Other packages add a `Suite` under the entry-point group `lactok.suites`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from lactok import registry

# Pixels of a side that LacTok's encoder sees (section 4.1; in miniature a quarter of it): 196, 256 and 324 ids.
ENCODER_SIZES = {"paper": (224, 256, 288), "mini": (56, 64, 72)}


@dataclass(frozen=True)
class Suite:
    """One suite.

    summary: a line for lists; task: what its models do; tokenizers, generators: its rows, in the paper's order; sized:
    those of them that are measured at every one of ENCODER_SIZES; table: the number of the paper's table that it makes,
    None for another suite; datasets: those of the table, in the paper's order, by name with the name that the paper
    prints; title: the table's; settings: values of other keys of the command line that it sets; scaled: such by scale;
    of_dataset: such of the runs on each of the table's datasets; unasked: by scale, metrics of the table that its runs
    do not compute unless they are asked for; the report says what these need.
    """

    name: str
    summary: str
    tokenizers: tuple[str, ...] = ("all",)
    generators: tuple[str, ...] = ("all",)
    task: Literal["reconstruction", "generation"] = "reconstruction"
    settings: Mapping[str, str] = field(default_factory=dict)
    scaled: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    of_dataset: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    sized: tuple[str, ...] = ()
    unasked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    table: int | None = None
    datasets: Mapping[str, str] = field(default_factory=dict)
    title: str = ""

    def options_on(self, dataset: str) -> dict[str, dict[str, Any]]:
        """By model, the options that its rows on one of the table's datasets all have.

        They are part of what is measured there, so no row is told apart by them. Several values make rows that differ;
        such an option is none of these.
        """
        found: dict[str, dict[str, Any]] = {}
        for key, text in self.of_dataset.get(dataset, {}).items():
            if key.startswith("options.") and not text.startswith("["):
                model, option = key.removeprefix("options.").rsplit(".", 1)
                found.setdefault(model, {})[option] = _value(text)
        return found


def _value(text: str) -> Any:
    """A setting's value: a number, true, false or null, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


IMAGENET = {"imagenet-val": "ImageNet"}
COCO = {"coco-val2017": "MSCOCO-2017"}
MJHQ = {"mjhq-5k": "MJHQ-5K"}
FLUX = {"flux-5k": "FLUX-5K"}
CAPTIONS = {"coco-captions": "MSCOCO-2017"}
OF_TABLES_1_AND_2 = ("seedtok", "titok", "llamagen", "flextok", "lactok-h", "lactok-h-star", "lactok-t-star")
STEPS = ("llamagen", "vq-ladd", "vq-ladd-hypersd", "vq-ladd-tlcm", "lactok-h")

GENERATORS = (
    *("sd1.5", "sdxl", "sd3", "flux.1-dev", "llamagen-t2i", "llamagen-t2i-512", "hart", "showo-256", "showo-512"),
    *("lactokgen-h", "lactokgen-h-star", "lactokgen-t-star"),
)
# Four images a prompt; guidance 9 as in GenEval's own script for diffusers' pipelines, others keep their own.
GUIDED = {"options.sd1.5.guidance_scale": "9", "options.sdxl.guidance_scale": "9"}
GENEVAL = {"metrics": "[geneval]", "seeds": "4"} | GUIDED
PREFERENCE = {"metrics": "[imagereward,mps,hpsv2-2.0,hpsv2-2.1]"}
SMALL = {"dataset": "scene-prompts", "metrics": "[geneval-small]", "seeds": "4", "generators": "all"}
PREFERRED = {"mini": ("imagereward", "mps", "hpsv2-2.0", "hpsv2-2.1")}  # judges of preference have no miniature
GUIDANCE = "[1.5,2,3,7]"

# What a reviewer compares a tokenizer with: each format as a file, as the best thumbnail, and without its header.
CODECS = tuple(f"{kind}{form}" for kind in ("jpeg", "webp", "avif", "jxl") for form in ("", "-thumbnail", "-payload"))
FEW_STEPS = "[1,2,4]"

BUILT_IN: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite("recon", "reconstruction: every image through every tokenizer and back, scored against itself"),
        Suite(
            "generate",
            "generation: an image of every prompt by every generator, kept and shown; metrics=[NAME,...] scores them",
            task="generation",
            settings={"dataset": "prompts", "scale": "paper", "calibration": "false"},
        ),
        Suite(
            "geneval",
            "GenEval: four images of each prompt, objects, counts, colours and places; in miniature on rendered scenes",
            generators=GENERATORS,
            task="generation",
            scaled={"mini": SMALL, "paper": {"dataset": "geneval"} | GENEVAL},
            unasked=PREFERRED,
        ),
        Suite(
            "preference",
            "human preference on MSCOCO-2017's captions: ImageReward, MPS, HPSv2 2.0 and 2.1",
            generators=GENERATORS,
            task="generation",
            settings={"scale": "paper", "dataset": "coco-captions"} | PREFERENCE,
        ),
        Suite(
            "review",
            "what a reviewer asks: costs, codecs at the same rates, few-step curves, colour by hue, round trips",
            ("all", *CODECS),
            settings={"metrics": "[default,hue-drift,duplicate-ids]", "costs": "true", "drift": "10"},
            scaled={
                "mini": {"options.lactok-t-mini.steps": FEW_STEPS},
                "paper": {"options.lactok-t.steps": FEW_STEPS, "options.lactok-t-star.steps": FEW_STEPS},
            },
        ),
        Suite("ablation", "from LlamaGen's decoder to LacTok's, step by step", (*STEPS, "lactok-t")),
        Suite("tokens", "LacTok at three numbers of ids", ("lactok-h", "lactok-t"), sized=("lactok-h", "lactok-t")),
        Suite(
            "table1",
            "the paper's Table 1: seven tokenizers on ImageNet and MSCOCO-2017",
            OF_TABLES_1_AND_2,
            table=1,
            datasets=IMAGENET | COCO,
            title="Table 1: reconstruction at 1024 pixels, ImageNet and MSCOCO-2017",
        ),
        Suite(
            "table2",
            "the paper's Table 2: the same seven on MJHQ-5K and FLUX-5K",
            OF_TABLES_1_AND_2,
            table=2,
            datasets=MJHQ | FLUX,
            title="Table 2: reconstruction at 1024 pixels, MJHQ-5K and FLUX-5K",
        ),
        Suite(
            "table4",
            "the paper's Table 4: from LlamaGen's decoder to LacTok-H's on MJHQ-5K",
            STEPS,
            table=4,
            datasets=MJHQ,
            title="Table 4: what each step of LacTok's decoder brings, MJHQ-5K",
        ),
        Suite(
            "table5",
            "the paper's Table 5: LacTok-H by the number of tokens on MJHQ-5K",
            ("lactok-h",),
            sized=("lactok-h",),
            table=5,
            datasets=MJHQ,
            title="Table 5: reconstruction by the number of tokens, MJHQ-5K",
        ),
        Suite(
            "table3",
            "the paper's Table 3: twelve text-to-image systems by GenEval and by human preference",
            generators=GENERATORS,
            task="generation",
            table=3,
            datasets={"geneval": "GenEval"} | CAPTIONS,
            of_dataset={"geneval": GENEVAL, "coco-captions": PREFERENCE},
            scaled={"mini": SMALL},
            unasked=PREFERRED,
            title="Table 3: text to image, GenEval and human preference on MSCOCO-2017",
        ),
        Suite(
            "table6",
            "the paper's Table 6: LacTokGen-T* by guidance scale; in miniature by GenEval on scenes",
            generators=("lactokgen-t-star",),
            task="generation",
            table=6,
            datasets=CAPTIONS,
            of_dataset={"coco-captions": PREFERENCE | {"options.lactokgen-t-star.guidance_scale": GUIDANCE}},
            scaled={
                "mini": SMALL
                | {"generators": "[lactokgen-t-mini]", "options.lactokgen-t-mini.guidance_scale": GUIDANCE}
            },
            unasked=PREFERRED,
            title="Table 6: LacTokGen-T* by guidance scale, MSCOCO-2017",
        ),
    )
}
PAPER_TABLES: dict[str, Suite] = {name: suite for name, suite in BUILT_IN.items() if suite.table is not None}


@cache
def suites() -> Mapping[str, Suite]:
    """All suites by name, those of other packages last. Raises RegistryError for a name that two of them bear."""
    found = dict(BUILT_IN)
    for name in registry.entries("suites"):
        suite = registry.load("suites", name)
        if not isinstance(suite, Suite):
            raise registry.BrokenPlugin(f"suite {name!r} is {suite!r}: expected an evals.suites.catalog.Suite")
        if name in found or suite.name != name:
            raise registry.BrokenPlugin(f"suite {name!r}: its name is {suite.name!r}, or another suite has that name")
        found[name] = suite
    return found
