"""docs/speed.md says what results/gpu/h200.json holds."""

from __future__ import annotations

import re

from tests.speed_tables import PAGE, percent, results, rewritten
from tests.support import ROOT

TEXT = PAGE.read_text()
PROSE = " ".join(TEXT.split())


def rates(tokenizer: str, part: str = "decode", **like: object) -> dict[str, dict]:
    """The fastest result by how its weights are held."""
    found: dict[str, dict] = {}
    for _, row in results("Coded"):
        if (row["tokenizer"], row["part"]) == (tokenizer, part) and like.items() <= row.items():
            best = found.setdefault(row["weights"], row)
            found[row["weights"]] = max(best, row, key=lambda one: one["images_per_second"])
    return found


def test_its_tables_are_those_of_the_results():
    assert rewritten(TEXT) == TEXT, "python -m tests.speed_tables writes them anew"


def test_the_targets_are_set_against_what_was_measured():
    (targets,) = re.findall(r"\| target .*?\n\n", TEXT, re.DOTALL)
    lactok, titok, flextok = (rates(name, compiled=False) for name in ("lactok-h", "titok", "flextok"))
    whole, held = lactok["bfloat16"], lactok["held"]
    assert f"{whole['images_per_second']:.1f} images/s, {percent(whole['share'])} of the matrix rate" in targets
    assert f"{held['images_per_second']:.1f} as a run holds it" in targets
    assert f"| {percent(titok['held']['share'])} |" in targets
    assert f"| {percent(flextok['float32']['share'])}," in targets
    (_, share), *_ = results("MetricsShare")
    assert f"| {percent(share['share'])} of" in targets
    assert max(whole["images_per_second"], held["images_per_second"]) < 20
    assert max(titok["held"]["share"], flextok["float32"]["share"]) < 0.4
    assert [line.rsplit("|", 2)[1].strip() for line in targets.strip().splitlines()[2:]] == ["not met"] * 3 + ["met"]


def test_the_card_and_its_rates():
    for run, row in results("MatrixRate"):
        assert f"{row['best'] / 1e12:.1f}" in TEXT, f"run {run}, {row['precision']}"
    for _, row in results("Card"):
        packages = row["packages"]
        for name in ("torch", "diffusers", "timm", "transformers", "triton"):
            assert f"{name} {packages[name]}" in PROSE
        assert row["device"] in PROSE
        assert f"CUDA {row['cuda']}" in PROSE
    shares = {run: row["flops_per_second"] / row["share"] / 1e12 for run, row in results("Coded")}
    assert all(
        f"{rate:.1f} TFLOP/s in run {run}" in PROSE or f"{rate:.1f} in run {run}" in PROSE
        for run, rate in shares.items()
    )


def test_the_metrics_beside_a_decode():
    (_, share), *_ = results("MetricsShare")
    assert f"{1e3 * share['seconds']:.2f} ms an image: {percent(share['share'])} of" in PROSE
    held = rates("lactok-h", compiled=False)["held"]
    assert f"{percent(share['seconds'] * held['images_per_second'])} of" in PROSE


def test_what_the_golden_cases_gave():
    cases = [row for _, row in results("GoldenCase")]
    passed = [row for row in cases if not row["failed"]]
    assert f"{len(passed)} of {len(cases)} pass, {sum(row['checked'] for row in passed)} tensors" in PROSE


def test_the_readme_says_the_same():
    readme = " ".join((ROOT / "README.md").read_text().split())
    lactok = rates("lactok-h", compiled=False)
    (_, share), *_ = results("MetricsShare")
    whole = lactok["bfloat16"]
    assert f"{lactok['held']['images_per_second']:.1f} images/s at 1024 pixels" in readme
    assert f"{whole['images_per_second']:.1f} with everything in bfloat16, {100 * whole['share']:.0f} % of" in readme
    assert f"default metrics take {percent(share['share'])} of the decode at {whole['images_per_second']:.1f}" in readme
