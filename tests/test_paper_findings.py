"""Where the paper disagrees with itself: computed, and as the file of facts and the page show it."""

import dataclasses
from pathlib import Path

import pytest

from evals.__main__ import main
from evals.cli.lint_paper import PAGE, line
from evals.published import findings
from evals.published.facts import COLUMNS, FactsError, facts, parse
from evals.published.findings import CHECKS, Computed, GPTConfig, disagreements

LINE = "a,stated,section 1,says,found,open,a source"
HEADER = ",".join(COLUMNS)


def by_name() -> dict:
    return {fact.finding: fact for fact in facts()}


def test_the_command_prints_a_line_a_finding_and_agrees(capsys):
    assert main(["lint-paper"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == len(facts())
    assert shown.err == ""
    assert "token-counts (section 4.1, appendix A, Table 5): says " in shown.out


def test_what_is_computed_is_listed_and_the_other_way_round():
    assert {f.finding for f in facts() if f.check == "computed"} == set(CHECKS)
    assert disagreements(facts()) == []


@pytest.mark.parametrize(
    ("finding", "part", "verdict"),
    [
        ("token-counts", "224 pixels give 14 x 14 = 196", "holds in part"),
        ("gpt-xl-parameters", "774,699,520", "does not hold"),
        ("table-3-against-table-6", "equal rows: none", "does not hold"),
        ("seedtok-ssim", "4 of 4 cells are nan", "does not hold"),
        ("lactok-h-over-llamagen", "SSIM mjhq-5k 0.68 against 0.68 (equal)", "holds in part"),
        ("reconstruction-loss", "SSIM LlamaGen 0.68 against 0.68 (equal)", "holds in part"),
        ("t-star-over-h-star", "LPIPS imagenet-val 0.43 against 0.43 (equal)", "holds in part"),
        ("show-o-and-hart", "ImageReward Show-o 0.90 against 0.95 (worse)", "holds in part"),
        ("sd3-and-flux-geneval", "GenEval two objects FLUX.1-dev 0.72 against 0.85 (worse)", "holds in part"),
        ("guidance", "MPS +0.01 then +0.02", "holds in part"),
        ("headline-rfid", "10.80 on MSCOCO-2017", "holds"),
        ("geneval-gaps", "LlamaGen by 0.41, SDXL by 0.18", "holds"),
        ("lactok-t-unstarred", "none", "does not hold"),
    ],
)
def test_findings(finding: str, part: str, verdict: str):
    fact = by_name()[finding]
    assert fact.verdict == verdict
    assert part in fact.found


def test_stated_findings_have_a_source_and_a_verdict():
    assert {"tlcm-steps", "few-step-lora-merged", "scores-select-and-judge", "lactokgen-h-pairs"} <= set(by_name())
    assert all(fact.source and fact.verdict for fact in facts())


def test_gpt_sizes():
    """The published counts of LlamaGen's GPT-XL: 775M class-conditional, 778M from captions."""
    assert GPTConfig(caption=None).parameters == 774_699_520
    assert GPTConfig().parameters == 777_678_080


def test_a_figure_that_changes_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys):
    cells = dict(findings._cells())
    key = (3, "Show-o", "coco-captions", "ImageReward")
    cells[key] = dataclasses.replace(cells[key], printed="0.85", value=0.85)
    monkeypatch.setattr(findings, "_cells", lambda: cells)
    assert main(["lint-paper"]) == 1
    assert "show-o-and-hart: computed 'better in 11 of 11' (holds); facts.csv has" in capsys.readouterr().err


def test_a_finding_without_its_other_half_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(CHECKS, "new", lambda: Computed("x", "open"))
    monkeypatch.delitem(CHECKS, "guidance")
    assert disagreements(facts()) == [
        "new: computed, and not in facts.csv",
        "guidance: facts.csv says that it is computed; nothing computes it",
    ]


def test_a_page_that_does_not_show_a_finding_is_an_error(tmp_path: Path, capsys):
    page = tmp_path / "paper.md"
    page.write_text(PAGE.read_text().replace(line(by_name()["guidance"]), ""))
    assert main(["lint-paper", "--page", str(page)]) == 1
    assert capsys.readouterr().err == "error: paper.md does not show guidance as facts.csv has it\n"
    assert main(["lint-paper", "--page", str(tmp_path / "none.md")]) == 0
    assert "is not here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finding,says\n", "expected .*'verdict'"),
        (f"{HEADER}\n{LINE}\n{LINE}\n", "line 3: a second finding a"),
        (f"{HEADER}\n{LINE.replace('stated', 'guessed')}\n", "line 2: check 'guessed': expected computed or stated"),
        (f"{HEADER}\n{LINE.replace('open', 'maybe')}\n", "line 2: verdict 'maybe': expected one of holds"),
        (f"{HEADER}\n{LINE.replace('a source', '')}\n", "line 2: expected 7 fields, none of them empty"),
        (f"{HEADER}\n{LINE},more\n", "line 2: expected 7 fields"),
    ],
)
def test_a_malformed_file_is_refused(text: str, message: str):
    with pytest.raises(FactsError, match=message):
        parse(text)
