"""Plugins join by entry points: found without import, nearest names on a miss, a broken one named, the rest go on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lactok import registry
from lactok.interface import Recorded, Tokenizer
from tests.support import TOY, install_plugin


@pytest.fixture(autouse=True)
def _fresh_registry():
    registry.entries.cache_clear()
    yield
    registry.entries.cache_clear()


def put_on_path(monkeypatch: pytest.MonkeyPatch, folder: Path, module: str) -> None:
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, module, raising=False)


def test_own_plugins_are_registered():
    assert registry.entries("tokenizers")["llamagen"].target == "baselines.tokenizers.llamagen.adapter:LlamaGen"
    for name in ("llamagen", "llamagen-t2i", "llamagen-mini"):
        assert issubclass(registry.load("tokenizers", name), (Tokenizer, Recorded))
    assert callable(registry.load("conformance", "llamagen_vq"))


def test_every_alias_stands_for_a_registered_name():
    for group, aliases in registry.ALIASES.items():
        known = registry.entries(group)
        for alias, target in aliases.items():
            assert alias not in known
            assert registry.load(group, alias) is registry.load(group, target)
            assert alias in registry.aliases_of(group, target)
    assert registry.canonical("tokenizers", "llamagen") == "llamagen"
    assert registry.aliases_of("tokenizers", "llamagen") == []


def test_unknown_name_gives_the_nearest():
    with pytest.raises(registry.UnknownName) as caught:
        registry.load("tokenizers", "LlamaGen_mni")
    message = str(caught.value)
    assert message.startswith("unknown tokenizer 'LlamaGen_mni': did you mean 'llamagen-mini'")
    assert "known: " in message
    with pytest.raises(registry.UnknownName, match=r"unknown port 'llamagen'.*'llamagen_vq'"):
        registry.load("conformance", "llamagen")
    with pytest.raises(registry.UnknownName, match="nothing is close to it"):
        registry.load("tokenizers", "zzzz")
    with pytest.raises(registry.UnknownName, match="no plugin group 'tokenizer'; groups: tokenizers"):
        registry.entries("tokenizer")


def test_third_party_package_joins_and_its_broken_plugin_is_named(monkeypatch, tmp_path: Path):
    put_on_path(monkeypatch, install_plugin(tmp_path / "a", "toy_good", TOY, {"toy": "Toy"}), "toy_good")
    broken = install_plugin(tmp_path / "b", "toy_broken", "import no_such_library\n", {"toy-broken": "Toy"})
    put_on_path(monkeypatch, broken, "toy_broken")
    exits = install_plugin(tmp_path / "c", "toy_exits", "raise SystemExit('no licence')\n", {"toy-exits": "Toy"})
    put_on_path(monkeypatch, exits, "toy_exits")
    lacks = install_plugin(tmp_path / "d", "toy_lacks", "", {"toy-lacks": "Toy"})
    put_on_path(monkeypatch, lacks, "toy_lacks")

    known = registry.entries("tokenizers")
    assert {"toy", "toy-broken", "toy-exits", "toy-lacks", "llamagen"} <= set(known)
    assert known["toy"].distribution == "toy_good"
    assert not {"toy_good", "toy_broken", "toy_exits"} & set(sys.modules)  # to list is not to import

    failures = {}
    for name in known:
        try:
            assert issubclass(registry.load("tokenizers", name), (Tokenizer, Recorded))
        except registry.BrokenPlugin as error:
            failures[name] = str(error)
    assert set(failures) == {"toy-broken", "toy-exits", "toy-lacks"}
    assert failures["toy-broken"] == (
        "tokenizer 'toy-broken' of package toy_broken can't be imported from toy_broken:Toy: "
        "ModuleNotFoundError: No module named 'no_such_library'"
    )
    assert "SystemExit: no licence" in failures["toy-exits"]
    assert "has no attribute 'Toy'" in failures["toy-lacks"]


def test_two_packages_with_one_name_are_refused(monkeypatch, tmp_path: Path):
    for module in ("toy_one", "toy_two"):
        put_on_path(monkeypatch, install_plugin(tmp_path / module, module, TOY, {"toy": "Toy"}), module)
    with pytest.raises(registry.RegistryError, match=r"two packages register tokenizer 'toy': toy_one .* toy_two"):
        registry.entries("tokenizers")


def test_the_same_entry_seen_twice_is_one(monkeypatch, tmp_path: Path):
    for folder in ("a", "b"):  # an editable install and its build leave two copies
        put_on_path(monkeypatch, install_plugin(tmp_path / folder, "toy_twice", TOY, {"toy": "Toy"}), "toy_twice")
    assert issubclass(registry.load("tokenizers", "toy"), Tokenizer)


def test_the_list_shows_other_names_and_no_row_of_their_own(capsys):
    from evals.__main__ import main

    assert main(["list", "tokenizers", "suites"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name, other in (("lactok-t", "also lactok-l"), ("lactok-t-star", "also lactok-l-star")):
        (line,) = [line for line in lines if line.startswith(f"{name}, ")]
        assert line.startswith(f"{name}, {other} (scale paper, ")
    assert not [line for line in lines if line.startswith("lactok-l")]
    assert any(line.startswith("table2") and "MJHQ-5K and FLUX-5K" in line for line in lines)
