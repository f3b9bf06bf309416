"""From names and options on the command line to the rows of a table."""

import importlib
import sys
from pathlib import Path

import pytest

from evals.config import ConfigError, compose_config
from evals.engine.rows import Row, Wanted, identify, resolve_rows
from lactok import registry
from lactok.interface import Generator, Recorded, Tokenizer
from lactok.registry import hashed_files
from tests.support import TOY, install_plugin

SWEPT = (
    "from dataclasses import dataclass, field\nfrom typing import Literal\n"
    + TOY
    + """

@dataclass
class Options:
    keep_tokens: int = 64
    steps: int = 2
    sizes: list[int] = field(default_factory=list)
    tiled: bool = False
    seed: int | None = None
    scale: float = 1.0
    path: str | None = None
    way: Literal["mean", "median"] = "mean"

    def __post_init__(self):
        if self.steps > 1000:
            raise ValueError(f"steps={self.steps}: expected at most 1000")


class Swept(Toy):
    Options = Options
"""
)


@pytest.fixture(autouse=True)
def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plugin = install_plugin(tmp_path / "plugin", "sweptplugin", SWEPT, {"swept": "Swept", "swept-twin": "Swept"})
    monkeypatch.syspath_prepend(str(plugin))
    registry.entries.cache_clear()
    yield
    registry.entries.cache_clear()


def resolved(tokenizers: object, preset: str, calibration: bool, options: dict) -> list[Row]:
    return resolve_rows(Wanted("tokenizers", tokenizers, preset, calibration, options, (Tokenizer, Recorded)))


def labels(tokenizers: object, options: dict, preset: str = "mini", calibration: bool = False) -> list[str]:
    return [r.label for r in resolved(tokenizers, preset, calibration, options)]


def test_a_name_means_its_miniature_under_mini_and_the_published_one_under_paper():
    assert labels("llamagen", {}) == ["llamagen-mini"]
    assert labels(["llamagen-mini", "llamagen"], {}) == ["llamagen-mini"]
    assert labels("llamagen", {}, "paper") == ["llamagen"]
    assert labels("llamagen-mini", {}, "paper") == ["llamagen-mini"]


def test_all_takes_what_belongs_to_the_preset():
    mini, paper = labels("all", {}, calibration=True), labels("all", {}, "paper", calibration=True)
    assert not {"identity", "resize-64", "downsample-bits", "mean-colour"} & set(labels("all", {})), "not asked for"
    assert {"llamagen-mini", "swept", "identity", "resize-64"} <= set(mini)
    assert {"llamagen", "titok", "flextok", "seedtok", "sdxl-vae", "resize-256"} <= set(paper)
    assert not {"llamagen", "resize-256"} & set(mini)
    assert not {"llamagen-mini", "resize-64"} & set(paper)
    assert {"lactok-h", "lactok-t", "lactok-t-star"} <= set(paper)
    assert not [name for name in (*mini, *paper) if name.startswith("vq-ladd")], "steps on the way to another row"
    assert labels("vq-ladd", {}, "paper") == ["vq-ladd"]


def test_suites_of_lactok_name_their_rows():
    for scale, sizes in (("mini", [56, 64, 72]), ("paper", [224, 256, 288])):
        config = compose_config(["suite=tokens", f"scale={scale}"])
        assert config.options == {"lactok-h": {"input_size": sizes}, "lactok-t": {"input_size": sizes}}
    assert len(labels(config.tokenizers, config.options, "paper")) == 6
    one = compose_config(["suite=tokens", "tokenizers=lactok-l", "scale=paper"])
    assert labels(one.tokenizers, one.options, "paper") == [
        "lactok-t[input_size=224]", "lactok-t", "lactok-t[input_size=288]",
    ]  # fmt: skip
    config = compose_config(["suite=ablation", "scale=paper"])
    assert set(labels(config.tokenizers, config.options, "paper")) == {
        "llamagen", "vq-ladd", "vq-ladd-hypersd", "vq-ladd-tlcm", "lactok-h", "lactok-t",
    }  # fmt: skip
    assert compose_config(["suite=ablation", "tokenizers=lactok-h"]).tokenizers == "lactok-h"


def test_another_name_of_a_tokenizer_is_the_same_row():
    assert labels(["lactok-l", "lactok-t", "lactok-l-star"], {}, "paper") == ["lactok-t", "lactok-t-star"]
    assert labels("lactok-l", {}) == ["lactok-t-mini"]
    every = labels("all", {}, "paper")
    assert every.count("lactok-t") == 1
    assert not [name for name in every if name.startswith("lactok-l")]
    (row,) = resolved("lactok-l-star", "paper", False, {"lactok-l-star": {"steps": 2}})
    assert (row.label, row.options.steps) == ("lactok-t-star[steps=2]", 2)
    with pytest.raises(ConfigError, match="lactok-t has got steps under another of its names"):
        resolved("lactok-l", "paper", False, {"lactok-l": {"steps": 1}, "lactok-t": {"steps": 2}})


def test_options_of_a_name_are_those_of_its_miniature():
    (row,) = resolved("llamagen", "mini", False, {"llamagen": {"weights": "/x"}})
    assert row.name == "llamagen-mini"
    assert row.options.weights == "/x"


def test_a_list_of_values_is_a_row_a_value_in_the_order_given():
    rows = resolved("swept", "mini", False, {"swept": {"keep_tokens": [1, 4, 16, 64]}})
    assert [r.options.keep_tokens for r in rows] == [1, 4, 16, 64]
    assert [r.label for r in rows] == ["swept[keep_tokens=1]", "swept[keep_tokens=4]", "swept[keep_tokens=16]", "swept"]
    grid = labels("swept", {"swept": {"keep_tokens": [1, 2], "steps": [3, 4]}})
    assert len(set(grid)) == 4


def test_an_option_that_takes_a_list_is_no_sweep():
    (row,) = resolved("swept", "mini", False, {"swept": {"sizes": [1, 2]}})
    assert row.options.sizes == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"swept": {"keep_id": 3}}, "options.swept.keep_tokens"),
        ({"swept": {"keep_tokens": "many"}}, "keep_tokens: int"),
        ({"swept": {"keep_tokens": [1, "many"]}}, "keep_tokens: int"),
        ({"identity": {"x": 1}}, "the rows of this run|has no options"),
        ({"nothing": {"x": 1}}, "unknown tokenizer 'nothing'"),
    ],
)
def test_options_that_are_not_declared_are_refused(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        resolved("swept", "mini", False, options)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({"tiled": "no"}, False), ({"tiled": "on"}, True), ({"tiled": 1}, True), ({"keep_tokens": "7"}, 7),
        ({"keep_tokens": 7.0}, 7), ({"seed": None}, None), ({"seed": "3"}, 3), ({"scale": 2}, 2.0), ({"path": 5}, "5"),
        ({"way": "median"}, "median"),
    ],
)  # fmt: skip
def test_values_of_options_have_the_declared_type(given: dict, seen: object):
    (row,) = resolved("swept", "mini", False, {"swept": given})
    value = getattr(row.options, *given)
    assert (value, type(value)) == (seen, type(seen))


@pytest.mark.parametrize(
    "given",
    [
        {"tiled": "maybe"}, {"tiled": 2}, {"tiled": None}, {"keep_tokens": 1.5}, {"keep_tokens": None},
        {"keep_tokens": True}, {"seed": True}, {"scale": False}, {"scale": "wide"}, {"path": True}, {"sizes": 3},
        {"sizes": [1.5]}, {"sizes": [True]}, {"way": "mode"}, {"steps": 1001},
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused(given: dict):
    (name,) = given
    with pytest.raises(ConfigError, match=rf"options\.swept\.{name}=|steps=1001") as error:
        resolved("swept", "mini", False, {"swept": given})
    assert "declared: keep_tokens: int" in str(error.value)


def test_calibration_rows_frame_the_table():
    assert labels(["swept", "llamagen"], {}, calibration=True) == [
        "identity", "resize-64", "llamagen-mini", "swept", "downsample-bits", "mean-colour",
    ]  # fmt: skip


def test_a_path_is_shown_by_its_last_part_where_that_is_enough():
    def labels(*paths: str) -> list[str]:
        rows = resolved("titok", "paper", False, {"titok": {"weights": list(paths)}})
        return [row.label for row in rows]

    assert labels("/a/long/way/model.safetensors") == ["titok[weights=model.safetensors]"]
    assert labels("/a/x.pt", "/b/y.pt") == ["titok[weights=x.pt]", "titok[weights=y.pt]"]
    assert labels("/a/x.pt", "/b/x.pt") == ["titok[weights=/a/x.pt]", "titok[weights=/b/x.pt]"]


# --- identities


BASE = TOY
CHILD = "from pluginbase import Toy\nfrom pluginmix import Mixin\n\n\nclass Child(Mixin, Toy):\n    pass\n"


@pytest.fixture
def inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Folder of a plugin in three files; a fresh identity of it for each call."""
    folder = tmp_path / "inherited"
    folder.mkdir()
    (folder / "pluginbase.py").write_text(BASE)
    (folder / "pluginmix.py").write_text("import torch.nn as nn\n\n\nclass Mixin(nn.Module):\n    pass\n")
    (folder / "pluginchild.py").write_text(CHILD)
    monkeypatch.syspath_prepend(str(folder))

    def source() -> str:
        for name in ("pluginbase", "pluginmix", "pluginchild"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        cls = importlib.import_module("pluginchild").Child
        return identify(Row("child", "child", cls, cls.Options())).parts["source"]

    yield folder, source
    for name in ("pluginbase", "pluginmix", "pluginchild"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("edited", ["pluginbase", "pluginmix", "pluginchild"])
def test_an_edit_of_any_file_that_a_plugin_inherits_from_measures_it_anew(inherited, edited: str):
    folder, source = inherited
    before = source()
    assert source() == before
    with open(folder / f"{edited}.py", "a") as file:
        file.write("\n# another\n")
    assert source() != before


def test_the_place_of_a_file_determines_nothing(inherited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, source = inherited
    before = source()
    moved = folder.rename(tmp_path / "moved")
    monkeypatch.syspath_prepend(str(moved))
    assert source() == before


def test_identity_holds_our_files_and_no_installed_package(inherited):
    """Ours even where lactok itself is an installed package; torch's and Python's never."""
    source = inherited[1]
    source()
    found = {Path(p).name for p in hashed_files(sys.modules["pluginchild"].Child)}
    assert found == {"pluginbase.py", "pluginmix.py", "pluginchild.py", "interface.py"}
    from baselines.tokenizers.llamagen.adapter import LlamaGenMini

    assert {Path(p).name for p in hashed_files(LlamaGenMini)} == {"adapter.py", "interface.py"}


def test_an_installed_plugin_is_hashed_with_what_its_package_inherits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A plugin that pip installed is its author's, not a dependency; what it inherits from other packages is one."""
    site = tmp_path / "lib" / "python3" / "site-packages"
    (site / "oneplugin").mkdir(parents=True)
    (site / "otherlib.py").write_text("class Helper:\n    pass\n")
    (site / "oneplugin" / "__init__.py").write_text("")
    (site / "oneplugin" / "base.py").write_text("from otherlib import Helper\n" + TOY.replace("Toy(T", "Toy(Helper, T"))
    (site / "oneplugin" / "end.py").write_text("from .base import Toy\n\n\nclass End(Toy):\n    pass\n")
    monkeypatch.syspath_prepend(str(site))
    try:
        found = {Path(p).name for p in hashed_files(importlib.import_module("oneplugin.end").End)}
    finally:
        for name in ("oneplugin.end", "oneplugin.base", "oneplugin", "otherlib"):
            sys.modules.pop(name, None)
    assert found == {"end.py", "base.py", "interface.py"}


def test_all_generators_are_those_of_the_preset_but_for_the_one_that_needs_a_folder():
    paper = resolve_rows(Wanted("generators", "all", "paper", True, {}, (Generator, Recorded)))
    assert {"sd1.5", "sdxl", "sd3", "flux.1-dev"} <= {row.name for row in paper}
    assert "folder" not in {row.name for row in paper}
    mini = resolve_rows(Wanted("generators", "all", "mini", True, {}, (Generator, Recorded)))
    models = {row.name for row in mini if row.cls is not None and row.cls.calibration is None}
    assert models == {"lactokgen-h-mini", "lactokgen-t-mini", "llamagen-t2i-mini"}
