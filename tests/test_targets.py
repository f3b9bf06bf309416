"""Plugins named by where they are, FILE.py:CLASS or package.module:CLASS: measured, identified, errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evals.config import ConfigError, compose_config
from evals.engine.rows import Row, Wanted, identify, resolve_rows
from evals.metrics.plan import metric_class
from evals.run import publish
from lactok import registry, targets
from lactok.interface import Tokenizer
from tests.commands import evals
from tests.plugin_runs import rows, run
from tests.support import TOY, pictures, table

# A tokenizer of a file, with a grid and a module beside it that says how grey its images are.
OWN = (
    "from dataclasses import dataclass\nfrom helper_of_toy import SHIFT\n"
    + TOY
    + """

@dataclass
class Options:
    \"\"\"levels: grey levels that are kept.\"\"\"

    levels: int = 256


class MyTok(Toy):
    Options = Options

    def decode(self, encoded, seeds):
        step = 256 // self.options.levels
        import late_helper  # beside it, imported when it is called

        return super().decode(Tokens(encoded.ids // step * step), seeds) + SHIFT + late_helper.NOTHING
"""
)
METRIC = """
from evals.metrics.base import Column, ImageMetric


class Brighter(ImageMetric):
    name = "brighter"
    summary = "mean of the image less that of its reference"
    columns = (Column("brighter", None),)

    @classmethod
    def build(cls, device, settings):
        return cls()

    def embed(self, images, items):
        return images.double().mean((1, 2, 3)) / 255

    def score(self, references, images, items):
        return {"brighter": images - references}
"""


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    modules, path = dict(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - set(modules):
        if getattr(sys.modules[name], "__file__", None) and "pytest" in str(sys.modules[name].__file__):
            del sys.modules[name]
    sys.path[:] = path
    targets._owners.clear()
    targets._digests.clear()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("images"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The folder of a file plugin."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "my_tok.py").write_text(OWN)
    (folder / "helper_of_toy.py").write_text("SHIFT = 0.0\n")
    (folder / "late_helper.py").write_text("NOTHING = 0\n")
    (folder / "brighter.py").write_text(METRIC)
    return folder


def resolved(*names: object, **options: dict[str, object]) -> list[Row]:
    return resolve_rows(Wanted("tokenizers", [str(name) for name in names], "mini", False, options, (Tokenizer,)))


def source(row: Row) -> str:
    return str(identify(row).parts["source"])


def test_a_file_is_measured_with_its_options_and_a_metric_of_a_file(
    own: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own)
    given = ["tokenizers=[./my_tok.py:MyTok]", "options.MyTok.levels=[4,256]", "metrics=[psnr,./brighter.py:Brighter]"]
    finished = run(images, tmp_path / "out", *given)
    found = rows(finished)
    assert list(found) == ["MyTok[levels=4]", "MyTok"]
    assert finished.record.missing_metrics == []
    psnr = {label: row.cells["PSNR"].value for label, row in found.items()}
    assert psnr["MyTok"] > psnr["MyTok[levels=4]"] + 1  # type: ignore[operator]  # both have a figure
    assert found["MyTok[levels=4]"].cells["brighter"].value < -0.05  # type: ignore[operator]  # the levels are floors


def test_two_ranks_and_two_processes_give_the_table_of_one(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own)
    data = pictures(tmp_path / "images", 20)
    given = [f"tokenizers=[{own}/my_tok.py:MyTok]", "metrics=[psnr]"]
    one = rows(run(data, tmp_path / "one", *given))["MyTok"]
    two = rows(run(data, tmp_path / "two", *given, ranks=2))["MyTok"]
    done = evals(*given, "workers=2", "calibration=false", "dataset=folder", f"dataset.root={data}",
                 f"out={tmp_path / 'spawned'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert two.cells == one.cells
    assert table(tmp_path / "spawned").loc["MyTok", "PSNR"] == one.cells["PSNR"].value


def test_an_edit_of_the_file_or_of_what_it_imports_is_measured_anew(own: Path, images: Path, tmp_path: Path) -> None:
    file = own / "my_tok.py"

    def psnr() -> float:
        found = rows(run(images, tmp_path / "out", f"tokenizers=[{file}:MyTok]", "metrics=[psnr]"))
        value = found["MyTok"].cells["PSNR"].value
        assert value is not None
        return value

    (before,) = resolved(f"{file}:MyTok")
    first = source(before)
    assert source(resolved(f"{file}:MyTok")[0]) == first, "the same files"
    whole = psnr()
    (own / "helper_of_toy.py").write_text("SHIFT = 0.3\n")
    assert source(resolved(f"{file}:MyTok")[0]) != first
    assert psnr() < whole - 3, "the process has the edited module"
    (own / "helper_of_toy.py").write_text("SHIFT = 0.0\n")
    assert source(resolved(f"{file}:MyTok")[0]) == first
    assert psnr() == whole
    file.write_text(OWN + "# a comment\n")
    assert source(resolved(f"{file}:MyTok")[0]) != first
    (own / "unrelated.py").write_text("import late_helper\n")
    assert sorted(targets.own_files(f"{file}:MyTok")) == ["", "helper_of_toy", "late_helper"]


def test_where_a_file_lies_is_no_part_of_its_identity(own: Path, tmp_path: Path) -> None:
    (row,) = resolved(f"{own}/my_tok.py:MyTok")
    here = identify(row).parts
    own.rename(tmp_path / "elsewhere")
    for name in ("helper_of_toy", "late_helper"):
        sys.modules.pop(name, None)
    targets._owners.clear()
    (row,) = resolved(f"{tmp_path}/elsewhere/my_tok.py:MyTok")
    assert identify(row).parts == here


def test_a_module_of_a_package_that_is_not_installed(
    own: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "work" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text("SIZE = 64\n")
    (package / "module.py").write_text("from .nets import SIZE\n" + TOY.replace("input_size=64", "input_size=SIZE"))
    monkeypatch.syspath_prepend(str(package.parent))  # as the working folder is under `python -m`
    target = "my_package.module:Toy"
    assert set(rows(run(images, tmp_path / "out", f"tokenizers=[{target}]", "metrics=[psnr]"))) == {"Toy"}
    assert sorted(targets.own_files(target)) == ["", "my_package", "my_package.nets"]
    (package / "nets.py").write_text("SIZE = 32\n")
    (row,) = resolved(target)
    assert row.cls is None
    assert "start a new process" in row.error
    assert targets.own_files("baselines.tokenizers.llamagen.adapter:LlamaGenMini") == {}


def test_names_of_targets(own: Path) -> None:
    (own / "old.py").write_text(OWN)
    labels = [row.label for row in resolved(own / "my_tok.py:MyTok", own / "old.py:MyTok", own / "my_tok.py:MyTok")]
    assert labels == ["my_tok-MyTok", "old-MyTok"]
    (row,) = resolved(own / "my_tok.py:MyTok", MyTok={"levels": 4})
    assert (row.name, row.label) == ("MyTok", "MyTok[levels=4]")
    with pytest.raises(ConfigError, match=r"unknown option 'options.MyTok.level'.*'options.MyTok.levels'"):
        resolved(own / "my_tok.py:MyTok", MyTok={"level": 4})
    (own / "sub").mkdir()
    (own / "sub" / "old.py").write_text(TOY.replace("class Toy", "class MyTok"))
    with pytest.raises(ConfigError, match="both called old-MyTok: rename one"):
        resolved(own / "old.py:MyTok", own / "sub" / "old.py:MyTok")


WRONG = {
    "my_tk.py:MyTok": r"no file .*my_tk.py; did you mean my_tok.py or ",
    "nowhere/my_tok.py:MyTok": "nor a folder",
    "my_tok.py:MyTk": r"has no 'MyTk'; did you mean MyTok\? its classes: Toy, Options, MyTok",
    "my_tok.py:": "expected FILE.py:CLASS",
    "my_tok.txt:MyTok": r"is no Python file|no file",
    "half.py:Bare": r"is no Tokenizer: derive it \(class Bare\(Tokenizer\), .* and define decode, info, which it lacks",
    "half.py:Half": "does not define decode; a Tokenizer has decode, encode, info",
    "half.py:VALUE": "is 3: expected a class",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_can_not_be_a_plugin_is_named(own: Path, name: str) -> None:
    (own / "half.py").write_text(
        "from lactok.interface import Tokenizer\nVALUE = 3\nclass Bare:\n    def encode(self, x): ...\n"
        "class Half(Tokenizer):\n    info = None\n    def encode(self, images): ...\n"
    )
    with pytest.raises(ConfigError, match=WRONG[name]):
        resolved(f"{own}/{name}")


def test_a_module_that_does_not_exist_is_named(own: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no module 'no_such_package'.*name a file by its path"):
        resolved("no_such_package.module:MyTok")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f():\n    return {}['weights']\nf()\n", "KeyError: 'weights' ("),
        ("x = (\n", "SyntaxError: '(' was never closed ("),
        ("import no_such_library\n", "ModuleNotFoundError: No module named 'no_such_library' ("),
        ("import sys\nsys.exit('no licence')\n", "SystemExit: no licence ("),
    ],
)
def test_a_file_that_raises_fails_its_row_and_its_traceback_is_kept(
    own: Path, images: Path, tmp_path: Path, text: str, said: str
) -> None:
    file = own / "broken.py"
    file.write_text(text)
    finished = run(images, tmp_path / "out", f"tokenizers=[{file}:MyTok,{own}/my_tok.py:Toy]", "metrics=[psnr]")
    found = rows(finished)
    assert found["Toy"].status == "ok"
    assert f"can't be imported: {said}" in found["MyTok"].error
    assert str(file) in found["MyTok"].error
    assert publish(finished, []) == 1
    report = (finished.folder / "report.md").read_text()
    assert "(traceback: errors/MyTok.txt)" in report
    assert said.rstrip(" (") in (finished.folder / "errors" / "MyTok.txt").read_text()
    assert not [name for name in sys.modules if name.startswith("broken_")]


def test_one_name_is_one_module_in_a_process(own: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "second.py").write_text("import helper_of_toy\n" + TOY)
    (other / "helper_of_toy.py").write_text("SHIFT = 1\n")
    first, second = resolved(own / "my_tok.py:MyTok", other / "second.py:Toy")
    assert first.cls is not None
    assert f"imports helper_of_toy from {other / 'helper_of_toy.py'}" in second.error
    assert str(own / "helper_of_toy.py") in second.error


def test_a_metric_of_a_file_needs_a_name_of_its_own(own: Path) -> None:
    from evals.metrics.plan import UnusableMetric

    (own / "brighter.py").write_text(METRIC.replace('"brighter"\n', '"psnr"\n'))
    with pytest.raises(UnusableMetric, match="expected a text that is no registered metric's name"):
        metric_class(f"{own}/brighter.py:Brighter")
    assert registry.is_target("a.py:B")


def test_the_command_line_takes_paths(own: Path) -> None:
    config = compose_config(["tokenizers=[./my_tok.py:MyTok,llamagen]", "options.MyTok.levels=[2,4]"])
    assert config.tokenizers == ["./my_tok.py:MyTok", "llamagen"]
    assert config.options == {"MyTok": {"levels": [2, 4]}}
