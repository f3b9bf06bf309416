"""The CI check: nothing moves when nothing changed, and it sees what a regression changes."""

import copy
import dataclasses
import importlib.util
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from evals.cli import check
from evals.record import ColumnRecord, RecordError, RowRecord, RunRecord, Value
from evals.tasks import reconstruction
from tests.support import ROOT

COMMITTED = ROOT / "results" / "mini" / "recon.json"


@pytest.fixture(scope="module")
def committed() -> check.Snapshot:
    """What is committed of llamagen-mini and the calibration rows, with the command for those."""
    found = check.read(COMMITTED)
    calibration = ("identity", "resize-64", "downsample-bits", "mean-colour")
    rows = {label: row for label, row in found.rows.items() if label in ("llamagen-mini", *calibration)}
    assert len(rows) == 5
    return replace(found, config=["tokenizers=[llamagen-mini]", "limit=32"], rows=rows)


def moved(committed: check.Snapshot) -> set[str]:
    return {m.what for m in check.compare(committed, check.measure(committed.config))}


def test_nothing_moves(capsys: pytest.CaptureFixture[str]):
    assert check.main([str(COMMITTED)]) == 0, capsys.readouterr().out


def test_another_resize_filter(committed: check.Snapshot, monkeypatch: pytest.MonkeyPatch):
    resize = reconstruction.resize
    bilinear = lambda images, size, _, antialias: resize(images, size, "bilinear", antialias)  # noqa: E731
    monkeypatch.setattr(reconstruction, "resize", bilinear)
    assert {"PSNR", "SSIM", "FD-effnet"} <= moved(committed)


def test_truncation_instead_of_rounding(committed: check.Snapshot, monkeypatch: pytest.MonkeyPatch):
    rounded = reconstruction.scored_images
    shifted = lambda output, p: rounded(output - 0.5 / 255, p)  # noqa: E731
    monkeypatch.setattr(reconstruction, "scored_images", shifted)
    assert "PSNR" in moved(committed)


def test_another_ssim_window(committed: check.Snapshot, monkeypatch: pytest.MonkeyPatch):
    from lactok import registry

    ssim = registry.load("metrics", "ssim")
    build = ssim.build
    other = lambda device, settings: build(device, {**settings, "ssim_window": "gauss11"})  # noqa: E731
    monkeypatch.setattr(ssim, "build", other)
    assert moved(committed) == {"SSIM"}


def test_swapped_colour_channels(committed: check.Snapshot, monkeypatch: pytest.MonkeyPatch):
    from baselines.tokenizers.llamagen.adapter import LlamaGenMini

    decode = LlamaGenMini.decode
    monkeypatch.setattr(LlamaGenMini, "decode", lambda self, encoded, seeds: decode(self, encoded, seeds).flip(1))
    assert {"PSNR", "FD-effnet"} <= moved(committed)


def test_one_changed_weight(committed: check.Snapshot, tmp_path: Path):
    """The largest weight of the decoder's last layer, doubled: the hash says so, and so do the figures."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from baselines.tokenizers.llamagen.adapter import LlamaGenMini
    from lactok.weights import locate

    (source,) = LlamaGenMini.weights(LlamaGenMini.Options())
    path = locate(source)
    state = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    name = max((n for n in state if state[n].ndim == 4), key=lambda n: float(state[n].abs().max()))
    flat = state[name].view(-1)
    index = int(flat.abs().argmax())
    flat[index] = flat[index] * 2
    save_file(state, tmp_path / "changed.safetensors", metadata)
    config = [*committed.config, f"options.llamagen-mini.weights={tmp_path / 'changed.safetensors'}"]
    now = check.measure(config)
    (label,) = [row for row in now.rows if row.startswith("llamagen-mini")]
    now.rows["llamagen-mini"] = now.rows.pop(label)
    found = {m.what for m in check.compare(committed, now)}
    assert "weights" in found
    assert "PSNR" in found


def test_moved_figures_exit_1_and_are_named(
    committed: check.Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    now = copy.deepcopy(committed)
    row = now.rows["llamagen-mini"]
    row.cells["PSNR"] += 0.001
    row.tokens[0] = " ".join(reversed(row.tokens[0].split()))
    path = tmp_path / "recon.json"
    path.write_text(json.dumps(dataclasses.asdict(committed)))
    monkeypatch.setattr(check, "measure", lambda overrides: now)
    assert check.main([str(path)]) == 1
    out = capsys.readouterr().out
    assert "llamagen-mini: PSNR" in out
    assert "llamagen-mini: tokens" in out


def test_tolerances_are_what_is_promised(committed: check.Snapshot):
    label = "llamagen-mini"

    def with_change(column: str, change: float) -> list:
        now = copy.deepcopy(committed)
        now.rows[label].cells[column] += change
        return check.compare(committed, now)

    fd = committed.rows[label].cells["FD-effnet"]
    for column, inside, outside in (("PSNR", 1e-4, 3e-4), ("SSIM", 5e-6, 2e-5), ("FD-effnet", 5e-5 * fd, 2e-4 * fd)):
        assert not with_change(column, inside)
        assert with_change(column, outside)


def test_one_token_in_a_thousand_may_differ(committed: check.Snapshot):
    def with_changed(count: int) -> list:
        now = copy.deepcopy(committed)
        lines = now.rows["llamagen-mini"].tokens
        for line in range(count):
            first, *rest = lines[line].split()
            lines[line] = " ".join([str(int(first) + 1), *rest])
        return check.compare(committed, now)

    assert sum(len(line.split()) for line in committed.rows["llamagen-mini"].tokens) == 32 * 64
    assert not with_changed(2)
    assert [m.what for m in with_changed(3)] == ["tokens"]


def one_row(**cells: float | str | None) -> check.Snapshot:
    """A snapshot of 32 images with one row."""
    return check.Snapshot([], "p", "d", 32, rows={"a": check.RowSnapshot("ok", cells=cells)})


@pytest.mark.parametrize(
    ("before", "after", "moves"),
    [
        (None, None, False), (None, 0.5, True), (0.5, None, True), ("nan", "nan", False), ("nan", 0.5, True),
        ("inf", "inf", False), ("inf", 0.5, True), (0.5, "inf", True), ("inf", "-inf", True),
    ],
)  # fmt: skip
def test_a_figure_that_is_missing_is_compared_too(before: object, after: object, moves: bool):
    found = check.compare(one_row(PSNR=before), one_row(PSNR=after))
    assert [m.what for m in found] == ["PSNR"] * moves
    assert [m.what for m in check.compare(one_row(PSNR=before), one_row())] == ["PSNR"] * (before is not None)


def test_top_1_may_move_by_one_image_and_distances_by_rounding():
    for column, before, inside, outside in (
        ("top1-effnet", 0.5, 1 / 32, 2 / 32),
        ("KID", 0.002, 1e-6, 2e-6),
        ("KID", 0.2, 2e-5, 4e-5),
        ("KID-std", 0.0, 1e-6, 2e-6),
        ("rFID", 10.0, 1e-3, 2e-3),
        ("a plugin's", 1.0, 1e-4, 2e-4),
    ):
        assert not check.compare(one_row(**{column: before}), one_row(**{column: before - inside}))
        assert check.compare(one_row(**{column: before}), one_row(**{column: before - outside}))


def test_every_column_is_in_the_file_but_those_of_tokens():
    """Tokens are compared themselves; a metric of another package is compared like ours."""
    columns = [ColumnRecord("PSNR", "higher"), ColumnRecord("a plugin's", None, kind="set")]
    columns.append(ColumnRecord("perplexity", None, kind="token"))
    cells = {"PSNR": Value(math.inf), "a plugin's": Value(None), "MSE": Value(0.0), "perplexity": Value(9.0)}
    rows = [RowRecord("a", "a", cells=cells), RowRecord("b", "b", status="failed", error="why")]
    run = RunRecord(
        suite="recon", task="reconstruction", scale="mini", config_hash="0", config={}, protocol={}, protocol_hash="p",
        dataset="d", dataset_fingerprint="f", items=3, clusters=3, columns=columns, rows=rows,
    )  # fmt: skip
    stored = SimpleNamespace(arrays={"ids": np.arange(6).reshape(3, 2)})
    items = [SimpleNamespace(tags=tags) for tags in ({"tag": "a"}, {"tag": "b"}, {"tag": "a"}, {})]
    job = SimpleNamespace(
        runs=["a", "b"], chunks=[0], task=SimpleNamespace(tokens=lambda run, chunk: "key"),
        cache=SimpleNamespace(read=lambda key: stored), seeds=2,
        dataset=SimpleNamespace(items=items),
    )  # fmt: skip
    found = check.snapshot(SimpleNamespace(record=run, job=job), ["limit=3"])
    assert found.rows["a"] == check.RowSnapshot(
        "ok", [], {"PSNR": "inf", "a plugin's": None, "MSE": 0.0}, ["0 1", "2 3", "4 5"]
    )
    assert found.rows["b"] == check.RowSnapshot("failed")
    assert found.tasks == {"a": 4, "b": 2}


def test_an_error_of_the_run_is_not_blamed_on_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(overrides: list[str]) -> check.Snapshot:
        raise TypeError("of the engine")

    path = tmp_path / "x.json"
    path.write_text(json.dumps(dataclasses.asdict(one_row())))
    monkeypatch.setattr(check, "measure", broken)
    with pytest.raises(TypeError, match="of the engine"):
        check.main([str(path)])


def test_a_file_that_holds_its_config_alone_is_filled_by_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    path = tmp_path / "x.json"
    path.write_text('{"config": ["limit=2"]}')
    made = replace(one_row(PSNR="inf", SSIM=0.5, KID=None), config=["limit=2"])
    monkeypatch.setattr(check, "measure", lambda overrides: made)
    assert check.main([str(path)]) == 2
    assert "has no rows to compare with: write them by update=true" in capsys.readouterr().err
    assert check.main([str(path), "--update"]) == 0
    assert check.read(path) == made
    assert check.main([str(path)]) == 0


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"config": ["limit=2"], "pictures": 3}', '{"config": [], "rows": {"a": 1}}']
)
def test_another_file_is_refused(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(RecordError):
        check.read(path)
    assert check.main([str(path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "x.json" in told


def test_a_file_that_is_not_there_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert check.main([str(tmp_path / "x.json")]) == 2
    assert "x.json" in capsys.readouterr().err


def test_a_folder_of_ones_own_is_refused_and_not_recorded(capsys: pytest.CaptureFixture[str]):
    assert check.main([str(COMMITTED), "out=runs/mine", "--update"]) == 2
    assert "out=runs/mine: a check measures anew in an empty folder" in capsys.readouterr().err


def test_a_summary_says_in_markdown_what_moved(
    committed: check.Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    summary = tmp_path / "summary.md"
    cells = {**committed.rows["llamagen-mini"].cells, "PSNR": 1.0}
    other = replace(committed, rows={**committed.rows, "llamagen-mini": replace(committed.rows["llamagen-mini"])})
    other.rows["llamagen-mini"].cells = cells
    for now, status in ((committed, 0), (other, 1)):
        monkeypatch.setattr(check, "read", lambda path: committed)
        monkeypatch.setattr(check, "measure", lambda overrides, now=now: now)
        assert check.main([str(COMMITTED), f"summary={summary}"]) == status
    text = summary.read_text()
    assert "### recon.json: nothing moved" in text
    assert "### recon.json: 1 figure(s) moved" in text
    before = committed.rows["llamagen-mini"].cells["PSNR"]
    assert f"| llamagen-mini | PSNR | {before} | 1.0 | 0.0002 |" in text
    assert check.main([str(COMMITTED), f"summary={tmp_path}"]) == 2
    assert f"summary={tmp_path} can't be written" in capsys.readouterr().err


def test_the_workflow_runs_the_tests_and_this_command_as_they_are():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert ".ci/run" in commands
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    gates = [line.split()[3:] for line in commands if line.startswith("python -m evals")]
    assert [gate[0] for gate in gates] == ["check", "check"]
    assert [(ROOT / gate[1]).resolve() for gate in gates] == [COMMITTED, COMMITTED.with_name("geneval.json")]
    for gate in gates:
        assert gate[2].startswith(check.SUMMARY)
        assert gate[2].removeprefix(check.SUMMARY) == '"$GITHUB_STEP_SUMMARY"'
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    modules = [hook["entry"].split()[2] for hook in hooks]
    assert all(importlib.util.find_spec(name) for name in modules), modules


def test_geneval_may_move_by_one_image_in_each_column():
    """Six tasks of four images, but for counting with two."""
    tasks = {"single_object": 4, "counting": 2, "position": 4}
    cases = {"GenEval-small": 1 / 6, "GenEval-small-counting": 1 / 2, "GenEval-small-position": 1 / 4}
    for column, one in (cases | {"GenEval-small-images": 1 / 10}).items():
        for moved, told in ((one, False), (1.5 * one, True)):
            snapshots = one_row(**{column: 0.9}), one_row(**{column: 0.9 - moved})
            both = [dataclasses.replace(snapshot, tasks=tasks) for snapshot in snapshots]
            assert bool(check.compare(*both)) == told, (column, moved)
