"""Paired tests between rows of two runs, or of one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import permutation_test, ttest_1samp

from evals import record
from evals.cli.compare import main
from evals.cli.power import main as power
from evals.metrics.intervals import holm, items_needed, sign_flip_p
from evals.record import ColumnRecord, Origin, RowRecord, RunRecord, Value, WeightsRecord
from evals.run import main as evals
from tests.support import pictures, the_run

COLUMNS = [
    ColumnRecord("PSNR", "higher"),
    ColumnRecord("perc", "lower"),
    ColumnRecord("dl", "zero"),
    ColumnRecord("rFID", "lower", kind="set"),
]


NOTE = "differences under 0.3 at N = 40 are not evidence"


def make(folder: Path, shift: float, n: int = 40, sha: str = "a" * 64, torch: str = "8", **changes) -> str:
    folder.mkdir()
    cells = {"rFID": Value(9.0 + shift, count=n, note=NOTE)}
    origin = Origin("a processor", 2, {"torch": torch}, "c0de")
    row = RowRecord("a", "a", weights=[WeightsRecord("x", sha, True)], cells=cells, origins=[origin])
    fields = {
        "suite": "recon", "task": "reconstruction", "scale": "mini", "config_hash": "0", "config": {"seed": 0},
        "protocol": {"fit": "squash"},
        "protocol_hash": "p", "dataset": "d", "dataset_fingerprint": "f", "items": n, "clusters": n,
        "columns": COLUMNS, "rows": [row, RowRecord("gone", "gone", status="missing", error="no weights")],
    } | changes  # fmt: skip
    (folder / "run.json").write_text(record.to_json(RunRecord(**fields)))
    base = np.random.default_rng(0).normal(20, 3, n)
    names = [f"{i:03}" for i in range(n)]
    psnr = base + shift
    psnr[0] = np.inf
    values = {"PSNR": psnr, "perc": base + shift, "dl": np.full(n, -1.0) + shift}
    frame = pd.DataFrame({"row": "a", "item": names, "cluster": names, "seed_index": 0} | values)
    frame.to_parquet(folder / "per_image.parquet")
    return str(folder)


def test_mean_share_won_and_what_changed(tmp_path: Path, capsys):
    a = make(tmp_path / "a", 0.0)
    b = make(tmp_path / "b", 0.5, sha="b" * 64, torch="9", config={"seed": 1}, versions={"torch": "10"})
    assert main([a, b]) == 0
    out = capsys.readouterr().out
    assert "PSNR: +0.5, 95 % [+0.5, +0.5], won 100.0 %, p 0.0001, 1 infinite left out" in out
    assert "perc: +0.5, 95 % [+0.5, +0.5], won 0.0 %" in out, "lower is better"
    assert "dl: +0.5, 95 % [+0.5, +0.5], won 100.0 %" in out, "closer to 0"
    assert f"rFID: 9 -> 9.5, +0.5 (of the whole set: not paired; {NOTE})" in out
    assert "config seed: 0 -> 1" in out
    assert "version torch: 8 -> 9" in out, "of the process that made the artifacts, not of the one that reported"
    assert "weights: x sha256 aaaaaaaaaaaa -> x sha256 bbbbbbbbbbbb" in out


def test_rows_made_on_other_machines_say_so(tmp_path: Path, capsys):
    origins = [Origin("a processor", 2, {}, "c0de"), Origin("a GPU", 8, {}, "c0de")]
    row = RowRecord("a", "a", weights=[WeightsRecord("x", "a" * 64, True)], origins=origins)
    assert main([make(tmp_path / "a", 0.0), make(tmp_path / "b", 0.0, rows=[row])]) == 0
    out = capsys.readouterr().out
    assert "made on device: a processor -> a GPU, a processor" in out
    assert "made with threads: 2 -> 2, 8" in out
    assert "made by code" not in out


def test_an_item_of_which_one_output_of_several_was_refused_is_left_out(tmp_path: Path, capsys):
    """As it is from the table's figures; and one run with two names is compared with itself."""
    folder = Path(make(tmp_path / "a", 0.0))
    frame = pd.read_parquet(folder / "per_image.parquet")
    second = frame.assign(seed_index=1)
    second.loc[7, "perc"] = np.nan
    both = pd.concat([frame, second])
    other = both.assign(row="b", perc=both["perc"] + 1)
    pd.concat([both, other]).to_parquet(folder / "per_image.parquet")
    found = record.read(folder / "run.json")
    (folder / "run.json").write_text(
        record.to_json(replace(found, rows=[replace(found.rows[0], seeds=2), RowRecord("b", "b", seeds=2)]))
    )
    assert main([str(folder), "row=a,b"]) == 0
    assert "perc: +1, 95 % [+1, +1], won 0.0 %, p 0.0001, 1 refused left out" in capsys.readouterr().out
    assert main([str(folder), "row=a"]) == 2
    assert "RUN_B is missing: name a second run, or two rows of one by row=A,B" in capsys.readouterr().err


def test_refused_items_are_left_out_and_counted(tmp_path: Path, capsys):
    folder = Path(make(tmp_path / "b", 0.5))
    frame = pd.read_parquet(folder / "per_image.parquet")
    frame.loc[[0, 5, 6], ["PSNR", "perc", "dl"]] = np.nan
    frame.to_parquet(folder / "per_image.parquet")
    assert main([make(tmp_path / "a", 0.0), str(folder)]) == 0
    out = capsys.readouterr().out
    assert "perc: +0.5, 95 % [+0.5, +0.5], won 0.0 %, p 0.0001, 3 refused left out" in out
    assert "PSNR: +0.5, 95 % [+0.5, +0.5], won 100.0 %, p 0.0001, 3 refused left out" in out, (
        "the infinite one is refused here"
    )


def test_the_mean_over_seed_indices_is_compared(tmp_path: Path, capsys):
    folder = Path(make(tmp_path / "b", 0.5))
    frame = pd.read_parquet(folder / "per_image.parquet")
    second = frame.assign(seed_index=1, perc=frame["perc"] + 1)
    pd.concat([frame, second]).to_parquet(folder / "per_image.parquet")
    assert main([make(tmp_path / "a", 0.0), str(folder)]) == 0
    assert "perc: +1, 95 % [+1, +1]" in capsys.readouterr().out


def test_pairing_narrows_the_interval(tmp_path: Path, capsys):
    """The images differ by 3 dB, the difference between both rows does not: the interval must not show the former."""
    folder = Path(make(tmp_path / "b", 0.5))
    frame = pd.read_parquet(folder / "per_image.parquet")
    frame["perc"] += np.random.default_rng(1).normal(0, 0.1, len(frame))
    frame.to_parquet(folder / "per_image.parquet")
    main([make(tmp_path / "a", 0.0), str(folder)])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "perc:" in line]
    low, high = (float(v) for v in line.split("[")[1].split("]")[0].split(","))
    assert 0.4 < low < 0.5 < high < 0.6


def test_a_run_against_itself_ties(tmp_path: Path, capsys):
    a = make(tmp_path / "a", 0.0)
    assert main([a, a]) == 0
    out = capsys.readouterr().out
    assert "nothing else changed" in out
    assert "perc: +0, 95 % [+0, +0], won 50.0 %" in out


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        (
            {"n": 30, "dataset_fingerprint": "g"},
            [],
            "the images differ (40 images of d, fingerprint f and 30 images of d",
        ),
        ({"n": 30}, [], "40 and 30 items that are not the same"),
        ({"protocol_hash": "q", "protocol": {"fit": "crop"}}, [], "fit: squash and crop"),
        ({}, ["--row", "a", "zzz"], "no row 'zzz'; with figures: a"),
        ({}, ["--row", "gone"], "gone has no figures in"),
        ({}, ["--row", "a", "b", "c"], "3 names: expected one or two"),
        ({"rows": []}, [], "share no row"),
    ],
)
def test_what_can_not_be_compared_exits_2(tmp_path: Path, capsys, changes: dict, more: list[str], message: str):
    a, b = make(tmp_path / "a", 0.0), make(tmp_path / "b", 0.0, **changes)
    assert main([a, b, *more]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run_exits_2(tmp_path: Path, capsys):
    assert main([make(tmp_path / "a", 0.0), str(tmp_path / "nowhere")]) == 2
    assert "holds no run.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"suite": "recon", "rows": []}', "has schema 1, of an earlier version"),
        ('{"suite": "recon", "rows": [], "schema": 99}', "has schema 99, written by a newer version"),
        ('{"suite": "recon", "rows": 5, "schema": 2}', "is damaged"),
        ("{}", "is no run's record"),
        ("{", "is no JSON"),
        (b"\xff\xfe", "is no UTF-8 text"),
    ],
)
def test_another_record_is_an_error_and_exits_2(tmp_path: Path, capsys, content: str | bytes, message: str):
    a = make(tmp_path / "a", 0.0)
    (tmp_path / "a" / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main([a, a]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert message in told


def test_values_of_an_earlier_version_are_refused(tmp_path: Path, capsys):
    a = make(tmp_path / "a", 0.0)
    path = tmp_path / "a" / "per_image.parquet"
    pd.read_parquet(path).rename(columns={"item": "sample", "seed_index": "decoding"}).to_parquet(path)
    assert main([a, a]) == 2
    assert "has columns row, sample, cluster, decoding" in capsys.readouterr().err


def test_two_tokenizers_of_a_real_run(tmp_path: Path, capsys):
    """identity loses nothing, so mean-colour wins no image and the mean difference is the run's own."""
    folder = pictures(tmp_path / "pictures")
    asked = ["tokenizers=mean-colour", "dataset=folder", f"dataset.root={folder}", f"out={tmp_path}", "metrics=[ssim]"]
    asked.append("workers=1")
    assert evals(asked) == 0
    run = the_run(tmp_path)
    assert main([str(run), str(run), "--row", "identity", "mean-colour"]) == 0
    out = capsys.readouterr().out
    assert "row: identity -> mean-colour" in out
    assert main([str(run), "row=identity,mean-colour"]) == 0
    assert "row: identity -> mean-colour" in capsys.readouterr().out
    cells = {row.label: row.cells["SSIM"].value for row in record.read(run / "run.json").rows}
    assert f"SSIM: {cells['mean-colour'] - cells['identity']:+.4g}, 95 %" in out
    assert "won 0.0 %" in out


def test_p_values_are_those_of_an_exact_sign_flip_test():
    rng = np.random.default_rng(3)
    values = rng.normal(0.4, 1, 9)
    exact = permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_p(values, [str(i) for i in range(9)]) == pytest.approx(exact)
    many = rng.normal(0.1, 1, 60)
    drawn = sign_flip_p(many, [str(i) for i in range(60)])
    assert drawn == pytest.approx(ttest_1samp(many, 0).pvalue, abs=0.02)
    assert drawn == sign_flip_p(many, [str(i) for i in range(60)])
    assert sign_flip_p(np.zeros(5), list("abcde")) == 1.0
    assert sign_flip_p(values, ["a", "b"] * 4 + ["a"]) is None


def test_sources_are_flipped_whole():
    """Copies of a source's images add nothing."""
    values = np.array([0.2, -0.1, 0.4, 0.3, 0.5])
    once = sign_flip_p(values, list("abcde"))
    assert sign_flip_p(np.repeat(values, 4), [c for c in "abcde" for _ in range(4)]) == once


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_items_needed_find_the_difference_with_that_power():
    count = items_needed(1.0, 0.3)
    assert count == 88  # ((1.960 + 0.842) / 0.3)^2
    rng = np.random.default_rng(0)
    found = [abs(x.mean()) > 1.96 * x.std(ddof=1) / count**0.5 for x in rng.normal(0.3, 1, (2000, count))]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)
    with pytest.raises(ValueError, match="difference 0"):
        items_needed(1.0, 0.0)


def three_rows(folder: Path) -> str:
    """Rows a, b and c; c is a but for half of the items."""
    run = Path(make(folder, 0.0))
    frame = pd.read_parquet(run / "per_image.parquet")
    noise = np.random.default_rng(1).normal(0.5, 1, len(frame))
    other, half = frame.assign(row="b", perc=frame["perc"] + noise), frame.assign(row="c")
    half.loc[:19, "perc"] += 1.0
    pd.concat([frame, other, half]).to_parquet(run / "per_image.parquet")
    found = record.read(run / "run.json")
    rows = [found.rows[0], *(replace(found.rows[0], label=n, name=n) for n in "bc"), found.rows[1]]
    (run / "run.json").write_text(record.to_json(replace(found, rows=rows)))
    return str(run)


def test_all_pairs_of_a_run_with_holms_p_values(tmp_path: Path, capsys):
    run = three_rows(tmp_path / "run")
    assert main([run, "--all"]) == 0
    block = capsys.readouterr().out.split("\nperc\n")[1].split("\n\n")[0].splitlines()
    assert [line.split(":")[0].strip() for line in block] == ["b less a", "c less a", "c less b"]
    assert "tied 50.0 %" in block[1]
    plain = [float(line.split(", p ")[1].split(",")[0]) for line in block]
    adjusted = [float(line.split("Holm's p ")[1]) for line in block]
    assert adjusted == pytest.approx(holm(plain), rel=0.06)  # two digits are shown
    for wrong in ([run, run, "--all"], [run, "--all", "--row", "a"], [run]):
        assert main(wrong) == 2


def test_the_items_that_differ_most_are_named(tmp_path: Path, capsys):
    run = three_rows(tmp_path / "run")
    frame = pd.read_parquet(Path(run) / "per_image.parquet")
    frame.loc[(frame["row"] == "b") & (frame["item"] == "007"), "perc"] -= 50
    frame.to_parquet(Path(run) / "per_image.parquet")
    assert main([run, run, "row=a,b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (perc,) = [i for i, line in enumerate(lines) if line.startswith("  perc:")]
    assert lines[perc + 1].startswith("    differing most: 007 ")
    assert lines[perc + 1].count("->") == 3
    assert "differing most" not in "".join(line for line in lines if "dl:" in line), "equal values differ nowhere"
    assert main([run, run, "row=a,b", "images=0"]) == 0
    assert "differing most" not in capsys.readouterr().out
    assert main([run, run, "images=-1"]) == 2


def test_pairs_as_files(tmp_path: Path, capsys):
    run, out = three_rows(tmp_path / "run"), tmp_path / "out"
    assert main([run, "all=true", f"out={out}"]) == 0
    assert str(out / "compare.png") in capsys.readouterr().out
    tests, items = pd.read_csv(out / "compare.csv"), pd.read_csv(out / "largest.csv", dtype={"item": str})
    assert list(zip(tests["first"], tests["second"]))[:3] == [("a", "b"), ("a", "c"), ("b", "c")]
    perc = tests[tests["metric"] == "perc"]
    assert list(perc["holm_p"]) == pytest.approx(holm(list(perc["p"])))
    assert perc["tied"].tolist() == [0, 0.5, 0]
    frame = pd.read_parquet(Path(run) / "per_image.parquet").pivot(index="item", columns="row", values="perc")
    worst = (frame["b"] - frame["a"]).abs().sort_values(ascending=False)
    seen = items[(items["metric"] == "perc") & (items["first"] == "a") & (items["second"] == "b")]
    assert list(seen["item"]) == list(worst.index[:10])
    assert list(seen["difference"].abs()) == pytest.approx(list(worst[:10]))
    assert seen["rank"].tolist() == list(range(1, 11))
    page, latex = (out / "compare.md").read_text(), (out / "compare.tex").read_text()
    mean = perc["mean"].iloc[0]
    assert f"| a | b | +0.000 \\[+0.000, +0.000\\] | {mean:+.3f}" in page
    assert rf"a & b & +0.000 {{[}}+0.000, +0.000{{]}} & {mean:+.3f}" in latex
    assert r"perc $\downarrow$" in latex
    assert latex.count(r"\\") == 4, "a head and three pairs"
    with Image.open(out / "compare.png") as image:
        assert min(image.size) > 300
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**20)}
    assert (213, 94, 0) in colours, "b and c are worse than a"
    assert (0, 114, 178) not in colours
    assert main([run, "all=true", f"out={out}"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_rows_of_two_runs_as_files(tmp_path: Path):
    a, b = make(tmp_path / "a", 0.0), make(tmp_path / "b", 0.5)
    assert main([a, b, f"out={tmp_path / 'out'}"]) == 0
    tests = pd.read_csv(tmp_path / "out" / "compare.csv")
    assert set(zip(tests["first"], tests["second"])) == {("a of a", "a of b")}
    assert list(tests["mean"]) == pytest.approx([0.5] * 3)


def test_power_says_how_many_sources_tell_a_difference(tmp_path: Path, capsys):
    run = three_rows(tmp_path / "run")
    assert power([run, "--row", "a", "b", "--metric", "perc"]) == 0
    seen = capsys.readouterr().out
    assert power([run, "--row", "a", "b", "--metric", "perc", "--difference", "0.1"]) == 0
    smaller = capsys.readouterr().out
    few, many = (int(out.split(": ")[1].split(" sources")[0].replace(",", "")) for out in (seen, smaller))
    assert few < 100 < many
    assert "(this run has 40; standard deviation of a source " in seen
    assert power([run, "--row", "a", "--difference", "0.5"]) == 0
    assert "PSNR: " in capsys.readouterr().out
    for wrong, said in (
        (["--row", "a"], "name the difference=D"),
        (["--row", "a", "z"], "has no row 'z'; with figures: a, b, c"),
        (["--row", "a", "b", "--metric", "LPIPS"], "no per-image metric 'LPIPS'; it has PSNR, perc, dl"),
        (["--row", "a", "c", "--metric", "dl"], "the difference is 0"),
        (["--row", "a", "b", "c"], "3 names: expected one or two"),
    ):
        assert power([run, *wrong]) == 2
        assert said in capsys.readouterr().err


def test_a_run_without_a_metric_of_single_images(tmp_path: Path, capsys):
    folder = pictures(tmp_path / "pictures")
    asked = [
        "tokenizers=[downsample-bits,mean-colour]",
        "dataset=folder",
        f"dataset.root={folder}",
        "calibration=false",
    ]
    assert evals([*asked, f"out={tmp_path}", "metrics=[codes]", "workers=1"]) == 0
    run = str(the_run(tmp_path))
    assert main([run, "row=downsample-bits,mean-colour"]) == 0
    assert "mean-colour less downsample-bits, 4 images of folder" in capsys.readouterr().out
    assert main([run, "all=true"]) == 0
    path = Path(run) / "per_image.parquet"
    assert pd.read_parquet(path).columns.tolist() == ["row", "item", "cluster", "seed_index"]
    pd.DataFrame({"row": [], "item": []}).to_parquet(path)  # as earlier versions wrote it
    assert main([run, "row=downsample-bits,mean-colour"]) == 0
    assert power([run, "row=downsample-bits", "difference=0.1"]) == 2
    assert "has no per-image metric; it has none" in capsys.readouterr().err


def test_other_sources_are_refused_whichever_run_is_named_first(tmp_path: Path, capsys):
    a, b = make(tmp_path / "a", 0.0), make(tmp_path / "b", 0.1)
    path = Path(b) / "per_image.parquet"
    frame = pd.read_parquet(path)
    frame["cluster"] = frame["item"].str[:2]
    frame.to_parquet(path)
    for runs in ([a, b], [b, a]):
        assert main([*runs, "row=a"]) == 2
        assert "sources are other groups of images (dataset.cluster)" in capsys.readouterr().err


def test_power_says_which_metric_has_too_few_finite_differences(tmp_path: Path, capsys):
    run = three_rows(tmp_path / "run")
    path = Path(run) / "per_image.parquet"
    frame = pd.read_parquet(path)
    frame.loc[frame["row"] == "a", "PSNR"] = np.inf
    frame.to_parquet(path)
    assert power([run, "--row", "a", "b"]) == 0
    said = capsys.readouterr()
    assert "PSNR: 0 source(s) with finite values" in said.err
    assert "perc: " in said.out
    assert power([run, "--row", "a", "b", "--metric", "PSNR"]) == 2
