"""README and docs of a plugin of one's own run as written; docs/tokenizers.md is what the classes say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from skimage import data

import evals
import lactok
from evals.__main__ import main
from evals.cli.options import options_of, page
from evals.config import compose_config
from evals.engine import run as engine
from lactok import registry
from tests.support import ROOT, pictures

README = (ROOT / "README.md").read_text()
GRID = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "adding-a-tokenizer.md").read_text(), re.DOTALL)
assert GRID is not None


def command(start: str, text: str = README) -> list[str]:
    """The words of the first command line of a text that starts so, its comment left out."""
    line = next(line.strip() for line in text.splitlines() if line.strip().startswith(start))
    return line.partition("  #")[0].split()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the tokenizer of the docs, under the README's name and its own."""
    assert GRID is not None
    (tmp_path / "my_tok.py").write_text(GRID[1].replace("AverageTokenizer", "MyTok"))
    (tmp_path / "average_tokenizer.py").write_text(GRID[1])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "text", [README, (ROOT / "docs" / "adding-a-tokenizer.md").read_text()], ids=["README", "docs"]
)
def test_the_lines_for_a_tokenizer_of_a_file_run(here: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command("python -m evals selftest ./", text)[4:]
    assert main(["selftest", *arguments, "device=cpu", "seconds=0"]) == 0, capsys.readouterr().out
    given = command("python -m evals.run tokenizers=[./", text)[3:]
    folder = pictures(here / "pictures", 2)
    finished = engine.run(
        compose_config(
            [*given, "calibration=false", "dataset=folder", f"dataset.root={folder}", "metrics=[psnr]", "out=out"]
        ),
        quiet=True,
    )
    labels = [row.label for row in finished.record.rows]
    name, grids = arguments[0].rpartition(":")[2], given[1].partition("=[")[2].strip("]").split(",")
    assert labels[: len(grids)] == [name if grid == "8" else f"{name}[grid={grid}]" for grid in grids]
    assert all(row.status == "ok" for row in finished.record.rows)
    assert "llamagen-mini" in labels


def test_the_lines_of_python_run() -> None:
    block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "lactok.load" in b)
    assert len(block.strip().splitlines()) == 3
    photographs = [data.astronaut(), data.coffee(), data.chelsea()]
    names: dict[str, Any] = {"lactok": lactok, "evals": evals, "photographs": photographs}
    exec(block, names)
    assert [image.size for image in names["images"]] == [(64, 64)] * 3


def test_the_list_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("python -m evals list tokenizers")[3:]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "options.NAME.OPTION=VALUE" in text
    for name in ("flextok-mini.keep_ids", "seedtok.guidance_scale", "lactok-t.conditioning_scale"):
        assert f" options.{name} " in text
    assert main(["list", "suites"]) == 0
    assert "options.NAME" not in capsys.readouterr().out
    assert main(["list", "suites", "--markdown"]) == 2


def test_every_option_of_ours_has_a_meaning() -> None:
    for group in ("tokenizers", "generators", "calibration"):
        for name, entry in registry.entries(group).items():
            if entry.distribution == "lactok":
                lacking = [o.name for o in options_of(registry.load(group, name).Options) if not o.meaning]
                assert lacking == [], f"{group} {name}: say in its Options' docstring what they mean (NAME: ...)"


def test_types_and_defaults_are_those_of_the_class() -> None:
    flextok = {option.name: option for option in options_of(registry.load("tokenizers", "flextok").Options)}
    assert (flextok["keep_ids"].type, flextok["keep_ids"].default) == ("int", "256")
    assert (flextok["posterior_seed"].type, flextok["posterior_seed"].default) == ("int | None", "null")
    assert flextok["vae_slicing"].default == "false"
    assert flextok["vae_slicing"].meaning == "the autoencoder decodes a batch image by image"


def test_the_page_of_tokenizers_is_up_to_date() -> None:
    committed = (ROOT / "docs" / "tokenizers.md").read_text()
    assert committed == page(), "write it again: python -m evals list tokenizers --markdown > docs/tokenizers.md"
    assert re.findall(r"^## (.+)$", committed, re.MULTILINE) == [
        name for name, entry in registry.entries("tokenizers").items() if entry.distribution == "lactok"
    ]


def test_sweeps_are_told_where_commands_are() -> None:
    from evals.cli.help import TEXT

    assert "options.NAME.key=[a,b]  a sweep: a row of the model for each value" in TEXT
    assert "./my_tok.py:MyTok" in TEXT
    assert "options.MyTok.grid=[4,8,16]" in README
