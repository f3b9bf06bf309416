"""What goes wrong is named, the other rows come, and the exit status says so."""

import os
from pathlib import Path

import pytest

from evals.record import read
from tests.commands import evals
from tests.support import TOY, install_plugin, pictures, table, the_run

BROKEN = (
    TOY
    + """

class NotANumber(Toy):
    def decode(self, encoded, seeds):
        return super().decode(encoded, seeds) * float("nan")

class WrongShape(Toy):
    def decode(self, encoded, seeds):
        return super().decode(encoded, seeds)[:, :, :32]

class WrongRange(Toy):
    def decode(self, encoded, seeds):
        return super().decode(encoded, seeds) * 255

class OutOfCodebook(Toy):
    def encode(self, images):
        return Tokens(super().encode(images).ids + 200)

class Raises(Toy):
    def __init__(self, options, device):
        raise KeyError("no such layer")
"""
)
NAMES = {
    "toy": "Toy", "not-a-number": "NotANumber", "wrong-shape": "WrongShape", "wrong-range": "WrongRange",
    "out-of-codebook": "OutOfCodebook", "raises": "Raises",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"))


def test_broken_tokenizers_are_named_and_the_others_come(tmp_path: Path, folder: Path):
    good = install_plugin(tmp_path / "good", "someplugin", BROKEN, NAMES)
    bad = install_plugin(tmp_path / "bad", "badplugin", "import a_module_that_is_not_here\n", {"unimportable": "X"})
    names = ",".join([*NAMES, "unimportable"])
    out = tmp_path / "out"
    given = f"tokenizers=[{names}]", "metrics=[psnr]", "dataset=folder", f"dataset.root={folder}", f"out={out}"
    done = evals(*given, plugins=(good, bad))
    assert done.returncode == 1, done.stderr
    rows = {r.label: r for r in read(the_run(out) / "run.json").rows}
    assert rows["toy"].status == rows["identity"].status == "ok"
    reasons = {
        "not-a-number": "NaN or infinite", "wrong-shape": "(4, 3, 32, 64)", "wrong-range": "[0, 1]",
        "out-of-codebook": "below the codebook size, 256", "raises": "KeyError: 'no such layer'",
        "unimportable": "a_module_that_is_not_here",
    }  # fmt: skip
    report = (the_run(out) / "report.md").read_text()
    for name, reason in reasons.items():
        assert rows[name].status == "failed"
        assert reason in rows[name].error
        assert name in done.stderr
        assert name in report
    assert table(out).loc["toy", "PSNR"] > 10


def test_all_takes_what_is_installed_and_survives_a_broken_package(tmp_path: Path, folder: Path):
    bad = install_plugin(tmp_path / "bad", "badplugin", "raise RuntimeError('no licence')\n", {"unimportable": "X"})
    out = tmp_path / "out"
    done = evals("dataset=folder", f"dataset.root={folder}", f"out={out}", "metrics=[psnr]", plugins=(bad,))
    assert done.returncode == 1
    assert "no licence" in done.stdout
    assert "unimportable" in done.stderr
    assert "llamagen-mini" in table(out).index
    listed = evals("list", "tokenizers", module="evals", plugins=(bad,))
    assert listed.returncode == 1
    assert "badplugin" in listed.stdout
    assert "llamagen-mini" in listed.stdout


def test_missing_weights_name_repository_file_place_and_command(tmp_path: Path, folder: Path):
    out = tmp_path / "out"
    done = evals(
        "tokenizers=llamagen",
        "weights=paper",
        "metrics=[psnr]",
        "dataset=folder",
        f"dataset.root={folder}",
        f"out={out}",
    )
    assert done.returncode == 1
    row = next(r for r in read(the_run(out) / "run.json").rows if r.name == "llamagen")
    assert row.status == "missing"
    for part in ("FoundationVision/LlamaGen", "vq_ds16_c2i.pt", "looked in", "hf download", "options.llamagen.weights"):
        assert part in row.error
    assert table(out).loc["identity", "SSIM" if "SSIM" in table(out) else "PSNR"] > 0


def test_a_missing_metric_network_is_named_and_the_other_metrics_come(tmp_path: Path, folder: Path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    out = tmp_path / "out"
    done = evals("tokenizers=[]", "metrics=[psnr,rfid]", "dataset=folder", f"dataset.root={folder}", f"out={out}")
    assert done.returncode == 2, "no tokenizer is named"
    done = evals("tokenizers=identity", "metrics=[psnr,rfid]", "dataset=folder", f"dataset.root={folder}", f"out={out}")
    assert done.returncode == 1
    record = read(the_run(out) / "run.json")
    assert any("rfid" in line and "weights-inception" in line for line in record.missing_metrics)
    assert "weights-inception" in (the_run(out) / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokenizers=lamagen"], "did you mean 'llamagen'"),
        (["metrics=[pnsr]"], "did you mean 'psnr'"),
        (["tokenizers=llamagen", "options.llamagen-mini.weigths=/x"], "options.llamagen-mini.weights"),
        (["tokenizers=llamagen", "options.titok.steps=3"], "the rows of this run"),
        (["dataset=folder"], "dataset.root=DIR"),
        (["dataset=folder", "dataset.root=/no/such/folder"], "/no/such/folder"),
        (["device=tpu"], "auto, cpu, cuda"),
        (["options.downsample-bits.bits=many"], "bits: int"),
    ],
)
def test_bad_requests_exit_2_with_a_way_out(tmp_path: Path, arguments: list[str], message: str, capsys):
    from evals.run import main

    assert main([*arguments, f"out='{tmp_path / 'out'}'"]) == 2
    assert message in capsys.readouterr().err


def test_bad_images_stop_the_run_with_the_whole_list_or_are_left_out(tmp_path: Path):
    folder = pictures(tmp_path / "pictures", 5)
    (folder / "broken.png").write_bytes((folder / "picture 00.png").read_bytes()[:300])
    (folder / "sub").mkdir()
    (folder / "sub" / "empty.jpg").write_bytes(b"")
    out = tmp_path / "out"
    common = ["tokenizers=identity", "metrics=[psnr]", "dataset=folder", f"dataset.root={folder}", f"out={out}"]
    done = evals(*common)
    assert done.returncode == 2
    assert "broken.png" in done.stderr
    assert "empty.jpg" in done.stderr
    done = evals(*common, "on_bad_image=skip")
    assert done.returncode == 0, done.stderr
    record = read(the_run(out) / "run.json")
    assert record.items == 5
    assert len(record.left_out) == 2
    assert "broken.png" in (the_run(out) / "report.md").read_text()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_output_folder_is_explained(tmp_path: Path, folder: Path):
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    done = evals("tokenizers=identity", "dataset=folder", f"dataset.root={folder}", f"out={out}")
    assert done.returncode == 2
    assert "out=DIR" in done.stderr


def test_an_output_folder_that_cannot_be_made_is_explained(tmp_path: Path, folder: Path):
    (tmp_path / "file").write_text("")
    done = evals("tokenizers=identity", "dataset=folder", f"dataset.root={folder}", f"out={tmp_path / 'file' / 'out'}")
    assert done.returncode == 2
    assert "out=DIR" in done.stderr
