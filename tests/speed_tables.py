"""The tables of docs/speed.md that hold what results/gpu/h200.json and h100.json hold, made from these files.

python -m tests.speed_tables        write them into the page, each in place of the table with the same head
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tests.support import ROOT

NAMES = {
    "lactok-h": "LacTok-H",
    "lactok-t": "LacTok-T",
    "flextok": "FlexTok",
    "titok": "TiTok",
    "llamagen": "LlamaGen",
    "seedtok": "SeedTok",
}


def results(kind: str, card: str = "h200") -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the run, from 1; result) of one kind, in the order of measuring."""
    for number, run in enumerate(json.loads((ROOT / f"results/gpu/{card}.json").read_text())["runs"], 1):
        for part in run["parts"]:
            yield from ((number, result) for result in part["results"] if result["kind"] == kind)


def table(head: str, rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def digits(value: float) -> str:
    """Three of them or more, no exponent."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def gib(size: int) -> str:
    return f"{size / 2**30:.1f}"


def coded() -> list[tuple[int, dict[str, Any]]]:
    """Not compiled, weights as the engine held them; of each tokenizer the latest run that has it."""
    found = [(run, row) for run, row in results("Coded") if not row["compiled"] and row["weights"] != "bfloat16"]
    latest = {row["tokenizer"]: run for run, row in found}
    chosen = [(run, row) for run, row in found if run == latest[row["tokenizer"]]]
    return sorted(chosen, key=lambda pair: list(NAMES).index(pair[1]["tokenizer"]))


def coding() -> str:
    rows = [
        [
            NAMES[row["tokenizer"]], row["part"], str(row["batch"]), digits(row["images_per_second"]),
            percent(row["share"]), gib(row["peak_bytes"]), str(run),
        ]
        for run, row in coded()
    ]  # fmt: skip
    return table("| tokenizer | part | batch | images/s | share of the matrix rate | peak, GiB | run |", rows)


def steps() -> str:
    how = {
        "float32": "float32 weights, cast at each call; autoencoder in float32 without TF32",
        "held": "bfloat16 weights but for the autoencoder, which is float32 with TF32: `precision=bf16`",
        "bfloat16": "everything in bfloat16, no autocast",
    }
    rows = [
        [
            how[row["weights"]],
            f"{row['images_per_second']:.2f}",
            percent(row["share"]),
            gib(row["peak_bytes"]),
            str(run),
        ]
        for run, row in results("Coded")
        if (row["tokenizer"], row["part"], row["batch"]) == ("lactok-h", "decode", 8)
    ]
    return table("| how | images/s | share of the matrix rate | peak, GiB | run |", rows)


KERNELS = {
    "convolutions of the float32 autoencoder": "fprop_implicit_gemm_f32f32",
    "copies of float32 tensors from one layout to another": "direct_copy_kernel_cuda",
    "attention of the autoencoder, float32": "fmha_cutlassF_f32",
    "moments of group norms": "RowwiseMoments",
    "scaling of group norms": "GroupNormKernelImpl",
    "additions": "CUDAFunctor_add",
    "cuDNN's own transposes": "engines_precompiled",
    "SiLU": "silu_kernel",
    "a linear layer of the UNet, bf16": "nvjet",
    "upsampling": "upsample_nearest2d",
}
"""What is done, by what only its kernels' names have in them."""


def kernels() -> str:
    def cell(found: Sequence[dict[str, Any]]) -> str:
        if not found:
            return "not among the ten"
        seconds, share = (sum(row[key] for row in found) for key in ("seconds", "share"))
        return f"{1e3 * seconds:,.0f} ms in {sum(row['calls'] for row in found)} ({100 * share:.0f} %)"

    by_run = [[row for run, row in results("Kernel") if run == number] for number in (1, 2)]
    rows = [
        [what, *(cell([row for row in found if part in row["name"]]) for found in by_run)]
        for what, part in KERNELS.items()
    ]
    assert all(sum(part in row["name"] for part in KERNELS.values()) == 1 for found in by_run for row in found)
    whole = [f"{1e3 * found[0]['seconds'] / found[0]['share']:,.0f} ms" for found in by_run]
    return table(
        "| kernels of a decode, in how many calls | run 1 | run 2 |", [*rows, ["all kernels of the decode", *whole]]
    )


def metrics() -> str:
    rows = [
        [row["metric"], row["weights"], digits(row["images_per_second"]), gib(row["peak_bytes"])]
        for _, row in results("MetricRate")
    ]
    return table("| metric | weights | images/s | peak, GiB |", rows)


def training() -> str:
    parts = ("forward", "backward", "clip", "optimizer", "average")
    rows = []
    for run, row in results("TrainingStep"):
        took = row.get("parts") or {}
        times = [f"{1e3 * took[part]:.0f}" if took else "–" for part in parts]
        peak = gib(row["peak_bytes"])
        how = [row["stage"], str(row["side"]), f"{row['seconds_per_step']:.3f}", percent(row["share"]), peak]
        rows.append([*how, *times, str(run)])
    names = " | ".join(f"{part}, ms" for part in parts)
    return table(f"| stage | side | s/step | share | peak, GiB | {names} | run |", rows)


def coding_h100() -> str:
    found = sorted((row for _, row in results("Coded", "h100")), key=lambda row: list(NAMES).index(row["tokenizer"]))
    rows = [
        [
            NAMES[row["tokenizer"]], row["part"], str(row["batch"]), digits(row["images_per_second"]),
            percent(row["share"]), gib(row["peak_bytes"]),
        ]
        for row in found
    ]  # fmt: skip
    return table("| tokenizer, on an H100 | part | batch | images/s | share of the matrix rate | peak, GiB |", rows)


def generation(card: str, head: str) -> str:
    rows = [
        [
            row["way"], str(row["batch"]), digits(row["ids_per_second"]), digits(row["images_per_second"]),
            digits(row["bandwidth_limit"]), percent(row["share"]), gib(row["peak_bytes"]),
        ]
        for _, row in results("Generated", card)
    ]  # fmt: skip
    return table(f"| {head} | prompts | ids/s | images/s | allowed by bandwidth, ids/s | share | peak, GiB |", rows)


def rewritten(page: str) -> str:
    """The page with each of these tables made anew. Raises ValueError where it has none of the same head."""
    lines = page.splitlines()
    generations = generation("h100", "way"), generation("h200", "way, on an H200")
    for made in (coding(), steps(), kernels(), metrics(), training(), coding_h100(), *generations):
        new = made.splitlines()
        start = lines.index(new[0])
        end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
        lines[start:end] = new
    return "\n".join(lines) + "\n"


PAGE = ROOT / "docs" / "speed.md"

if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
