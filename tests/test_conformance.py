"""Golden cases are run by their ports, and every kind of difference is a FAIL with exit status 1."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evals.cli.conformance import is_case_file, main
from lactok import registry
from lactok.conformance import (
    CaseError,
    CaseFolder,
    CheckLine,
    UnhandledCase,
    compare_floats,
    compare_ids,
)
from lactok.seeded import TensorSpec, manifest_of, seeded_state_dict, seeded_tensor

GOLDEN = Path(__file__).parent / "golden"
MODEL = GOLDEN / "llamagen_vq"


@pytest.fixture(scope="module")
def tiny_lines() -> dict[str, CheckLine]:
    return {line.tensor: line for line in registry.load("conformance", "llamagen_vq")(CaseFolder(MODEL / "tiny"))}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tiny case in a model's folder of its own, to be changed."""
    folder = tmp_path / "llamagen_vq" / "changed"
    shutil.copytree(MODEL / "tiny", folder)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "case.safetensors")
    change(tensors)
    save_file(tensors, folder / "case.safetensors")


def edit_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


def verdicts(output: str) -> dict[str, str]:
    """Tensor name to PASS or FAIL, from the command's lines."""
    return {m[1]: m[2] for m in re.finditer(r"^\S+  (\S+) .*\b(PASS|FAIL)\b", output, re.MULTILINE)}


def failed(output: str) -> set[str]:
    return {name for name, verdict in verdicts(output).items() if verdict == "FAIL"}


def test_tiny_case_checks_every_stored_output(tiny_lines: dict[str, CheckLine]):
    assert all(line.passed for line in tiny_lines.values()), [x for x in tiny_lines.values() if not x.passed]
    given = {"input", "random_tokens", "indices_gap", "no_l2_indices_gap"}
    given |= {f"preprocess{i}_in" for i in range(3)}
    assert set(tiny_lines) == set(CaseFolder(MODEL / "tiny").names) - given
    assert all(line.max_abs < 2e-5 for line in tiny_lines.values() if line.max_abs is not None)
    assert tiny_lines["indices"].ids_equal


def test_full_case_at_one_size(tmp_path: Path, capsys):
    """The manifest stands in the folder above, and the input is made by the rule."""
    folder = tmp_path / "llamagen_vq" / "full"
    shutil.copytree(MODEL / "full", folder)
    shutil.copy(MODEL / "manifest.json", folder.parent)
    edit_config(folder, sizes=[224])

    def keep(tensors: dict[str, Tensor]) -> None:
        for name in [n for n in tensors if n.startswith(("s256_", "s288_"))]:
            del tensors[name]

    edit(folder, keep)
    assert main([str(folder)]) == 0
    output = capsys.readouterr().out
    assert verdicts(output).keys() == {
        "s224_indices",
        "s224_input_stats",
        "s224_pre_quant",
        "random_tokens_recon_avgpool8",
        "random_tokens_recon_crop_y112_x112_32",
    }
    assert output.endswith("\n5 checked: 5 passed, 0 failed\n")


def test_a_changed_id_fails(copy: Path, capsys):
    def change(tensors: dict[str, Tensor]) -> None:
        place = tuple((tensors["indices_gap"] > 0.01).nonzero()[0])
        tensors["indices"][place] = (tensors["indices"][place] + 1) % 512

    edit(copy, change)
    assert main([str(copy)]) == 1
    output = capsys.readouterr().out
    assert "indices" in failed(output)
    assert re.search(r"  indices .*ids differ +FAIL  \(1 of 160 differ\)", output)
    assert re.search(r"\n\d+ checked: \d+ passed, \d+ failed\n$", output)


def test_an_id_that_is_a_matter_of_rounding_may_differ(copy: Path, capsys):
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["indices"][1, 2, 3] = (tensors["indices"][1, 2, 3] + 1) % 512
        tensors["indices_gap"][1, 2, 3] = 5e-5

    edit(copy, change)
    main([str(copy)])
    output = capsys.readouterr().out
    assert verdicts(output)["indices"] == "PASS"
    assert "1 differ where the gap is below 0.0001, which is allowed" in output


def test_swapped_channels_fail(copy: Path, capsys):
    edit(copy, lambda tensors: tensors.update(input=tensors["input"].flip(1).contiguous()))
    assert main([str(copy)]) == 1
    assert {"enc_out", "pre_quant", "indices"} <= failed(capsys.readouterr().out)


def test_one_changed_weight_fails(copy: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    honest = CaseFolder.seeded_weights

    def changed(case: CaseFolder) -> dict[str, Tensor]:
        state = honest(case)
        state["decoder.conv_blocks.1.res.0.conv1.weight"][0, 0, 1, 1] += 0.05
        return state

    monkeypatch.setattr(CaseFolder, "seeded_weights", changed)
    assert main([str(copy)]) == 1
    output = failed(capsys.readouterr().out)
    assert "recon" in output
    assert not {"enc_out", "indices"} & output  # and only what depends on it


def test_another_seed_fails(copy: Path, capsys):
    edit_config(copy, weights_seed=1)
    assert main([str(copy)]) == 1
    assert {"enc_out", "recon"} <= failed(capsys.readouterr().out)


def test_a_tensor_that_no_check_knows_fails(copy: Path, capsys):
    edit(copy, lambda tensors: tensors.update(dec_secret=torch.zeros(1)))
    assert main([str(copy)]) == 1
    assert failed(capsys.readouterr().out) == {"dec_secret"}


def test_optional_tensors_may_be_absent(copy: Path, capsys):
    def change(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            if name.startswith(("train_", "no_l2_", "preprocess", "random_", "dec_", "recon_")):
                del tensors[name]

    edit(copy, change)
    assert main([str(copy)]) == 0
    assert {"recon", "indices", "pre_quant"} <= set(verdicts(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("case.safetensors", b"not safetensors", r"case\.safetensors can't be read"),
        ("case.safetensors", None, r"case\.safetensors can't be read"),
        ("config.json", b"{", r"config\.json can't be read"),
        ("config.json", b"{}", r"CheckpointMismatch|has no 'weights_seed'"),
        ("manifest.json", None, r"no manifest\.json in .* nor in the folder above"),
    ],
)
def test_damaged_case_is_a_fail_with_its_reason(copy: Path, capsys, name: str, content: bytes | None, reason: str):
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    assert main([str(copy.parent)]) == 1
    output = capsys.readouterr().out
    assert re.search(rf"llamagen_vq/changed  \(case\) .*FAIL  \(.*({reason})", output)
    assert output.endswith("1 checked: 0 passed, 1 failed\n")


def test_nothing_checked_is_no_success(tmp_path: Path, capsys):
    (tmp_path / "llamagen_vq").mkdir()
    assert main([str(tmp_path / "llamagen_vq")]) == 1
    assert "nothing to check" in capsys.readouterr().out
    assert main([str(tmp_path)]) == 1


def test_bad_usage(tmp_path: Path, capsys):
    for argv in ([], [str(tmp_path / "nowhere")]):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2
    assert "nowhere is neither a folder nor a .jsonl case" in capsys.readouterr().err


def one_line(passed: bool) -> Callable[[CaseFolder], Iterator[CheckLine]]:
    def run(case: CaseFolder) -> Iterator[CheckLine]:
        if case.path.suffix == ".jsonl":
            raise UnhandledCase(f"{case.name} is data")
        yield CheckLine("out", 0.0, 0.0, None, passed)

    return run


def breaks(case: CaseFolder) -> Iterator[CheckLine]:
    yield CheckLine("first", 0.0, 0.0, None, True)
    raise ZeroDivisionError("by\nzero")


def silent(case: CaseFolder) -> Iterator[CheckLine]:
    return iter(())


@pytest.fixture
def several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of several models, with ports of every kind: good, broken, silent, not importable, none."""
    runners = {"a_breaks": breaks, "b_silent": silent, "d_good": one_line(True)}
    entries = {name: registry.Entry(name, "x:y", "test") for name in (*runners, "c_broken")}

    def load(group: str, name: str):
        if name == "c_broken":
            raise registry.BrokenPlugin("port 'c_broken' can't be imported")
        return runners[name]

    monkeypatch.setattr(registry, "entries", lambda group: entries)
    monkeypatch.setattr(registry, "load", load)
    for model in (*entries, "e_unknown"):
        folder = tmp_path / "golden" / model / "tiny"
        folder.mkdir(parents=True)
        save_file({"x": torch.zeros(1)}, folder / "case.safetensors")
    (tmp_path / "golden" / "README.md").write_text("text")
    (tmp_path / "golden" / "d_good" / "config.json").write_text("{}")  # a model's own, not a case's
    (tmp_path / "golden" / "d_good" / "data.jsonl").write_text("{}\n")
    return tmp_path / "golden"


def test_one_broken_port_does_not_take_the_others_with_it(several: Path, capsys):
    assert main([str(several)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"^a_breaks/tiny  first .*PASS$", lines[0])
    assert re.search(r"^a_breaks/tiny  \(case\) .*FAIL  \(ZeroDivisionError: by zero\)$", lines[1])
    assert re.search(r"^b_silent/tiny .*FAIL  \(CaseError: the port checked nothing in it\)$", lines[2])
    assert re.search(r"^c_broken/tiny .*FAIL  \(BrokenPlugin: port 'c_broken' can't be imported\)$", lines[3])
    assert lines[4] == "d_good/data.jsonl  data.jsonl is data, left out"
    assert re.search(r"^d_good/tiny  out .*PASS$", lines[5])
    assert lines[6] == "e_unknown  no port, left out"
    assert lines[7] == "5 checked: 2 passed, 3 failed, 2 left out"


def test_a_model_without_a_port_fails_when_it_is_named(several: Path, capsys):
    for path in (several / "e_unknown", several / "e_unknown" / "tiny"):
        assert main([str(several / "d_good"), str(path)]) == 1
        assert "unknown port 'e_unknown'" in capsys.readouterr().out
    assert main([str(several / "d_good")]) == 0
    assert main([str(several / "d_good" / "data.jsonl")]) == 1


def test_comparison_of_floats():
    want = torch.tensor([10.0, -2.0])
    line = compare_floats("x", torch.tensor([10.0005, -2.0]), want)
    assert line.passed
    assert line.max_abs == pytest.approx(5e-4, rel=1e-2)
    assert line.max_rel == pytest.approx(5e-5, rel=1e-2)
    assert not compare_floats("x", torch.tensor([10.0, -2.002]), want).passed
    assert compare_floats("x", torch.tensor([10.0, -2.002]), want, atol=0.01).passed
    assert not compare_floats("x", torch.tensor([10.0, torch.nan]), want).passed
    assert not compare_floats("x", torch.tensor([10.0, -torch.inf]), want).passed
    assert not compare_floats("x", torch.zeros(3), want).passed
    assert not compare_floats("x", torch.tensor(1e-30), torch.tensor(0.0)).passed
    infinite = torch.tensor([torch.inf, 3.0])
    assert compare_floats("x", infinite.clone(), infinite).passed
    assert not compare_floats("x", torch.tensor([-torch.inf, 3.0]), infinite).passed
    assert not compare_floats("x", torch.tensor([torch.inf, 3.1]), infinite).passed


def test_comparison_of_ids():
    want = torch.tensor([[1, 2, 3]])
    assert compare_ids("x", want.int(), want).ids_equal
    assert not compare_ids("x", torch.tensor([[1, 2, 4]]), want).passed
    gap = torch.tensor([[1.0, 1.0, 9e-5]])
    assert compare_ids("x", torch.tensor([[1, 2, 4]]), want, gap).passed
    assert not compare_ids("x", torch.tensor([[1, 9, 4]]), want, gap).passed
    assert "shape (3,), expected (1, 3)" in compare_ids("x", want[0], want).note


def test_case_names_what_it_lacks():
    case = CaseFolder(MODEL / "tiny")
    with pytest.raises(CaseError, match=r"has no tensor 'nothing'; it has codebook_entry, "):
        case["nothing"]
    with pytest.raises(CaseError, match=r"config\.json has no 'nothing'; it has "):
        case.setting("nothing")
    assert case.get("nothing") is None
    assert case.model == "llamagen_vq"


def test_jsonl_rows(tmp_path: Path):
    path = tmp_path / "cases.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [row["a"] for row in CaseFolder(path).rows()] == [1, 2]
    path.write_text('{"a": 1}\n{\n')
    with pytest.raises(CaseError, match=r"cases\.jsonl, line 2: not JSON"):
        list(CaseFolder(path).rows())


# The first values by the rule as it was published; its streams are frozen, so they hold on every platform.
SEEDED: dict[tuple[str, tuple[int, ...], int], list[float]] = {
    ("encoder.conv.weight", (4, 3, 2), 0): [-0.02611575461924076, 0.18650774657726288],
    ("encoder.conv.bias", (3,), 0): [-0.025372281670570374, -0.015145531855523586],
    ("norm.weight", (3,), 7): [1.1338492631912231, 0.9585954546928406],
    ("bn.running_var", (3,), 1): [0.9355012774467468, 1.296332597732544],
    ("bn.running_mean", (3,), 1): [-0.13833318650722504, 0.1437251716852188],
    ("logit_scale", (), 2): [-0.03203723207116127],
}


def test_rule_of_the_seeded_weights():
    for (name, shape, seed), values in SEEDED.items():
        tensor = seeded_tensor(name, shape, seed)
        assert tensor.dtype == torch.float32
        assert tensor.shape == shape
        assert tensor.flatten()[:2].tolist() == values
    manifest = {"a.weight": TensorSpec((2, 3)), "steps": TensorSpec((), "int64"), "h": TensorSpec((2,), "bfloat16")}
    assert list(seeded_state_dict(manifest)) == ["a.weight", "h"]
    assert manifest_of(torch.nn.BatchNorm1d(2))["running_mean"] == TensorSpec((2,), "float32")


def test_compressed_manifests_and_rows_are_read_as_the_plain_ones(tmp_path: Path):
    plain, packed = tmp_path / "plain" / "tiny", tmp_path / "packed" / "tiny"
    manifest = (MODEL / "manifest.json").read_bytes()
    for folder, name, content in (
        (plain, "manifest.json", manifest),
        (packed, "manifest.json.gz", gzip.compress(manifest)),
    ):
        folder.mkdir(parents=True)
        (folder.parent / name).write_bytes(content)
    assert CaseFolder(packed).manifest() == CaseFolder(plain).manifest() != {}
    rows = packed / "rows.jsonl.gz"
    rows.write_bytes(gzip.compress('{"a": "\u2028"}\n\n[2]\n'.encode()))
    assert list(CaseFolder(rows).rows()) == [{"a": "\u2028"}, [2]]
    assert is_case_file(rows)
    for broken in (b"no gzip", gzip.compress(manifest)[:-9], b"\x1f\x8b" + b"\0" * 40):
        rows.write_bytes(broken)
        with pytest.raises(CaseError, match=r"rows\.jsonl\.gz can't be read"):
            list(CaseFolder(rows).rows())
