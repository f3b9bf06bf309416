"""What the documentation shows is what runs."""

import re
import tomllib
from pathlib import Path

from tests.support import ROOT, evals, install_plugin, pictures, table

PAGE = (ROOT / "docs" / "adding-a-tokenizer.md").read_text()


def snippet(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL).group(1)


def test_the_tokenizer_of_the_docs_runs_as_written(tmp_path: Path):
    source = snippet("python")
    assert len(source.splitlines()) < 40
    points = tomllib.loads(snippet("toml"))["project"]["entry-points"]["lactok.tokenizers"]
    ((name, target),) = points.items()
    module, attribute = target.split(":")
    plugin = install_plugin(tmp_path / "plugin", module, source, {name: attribute})
    out, folder = tmp_path / "out", pictures(tmp_path / "pictures")
    common = ["dataset=folder", f"dataset.root={folder}", f"out={out}", "metrics=[psnr,codes]"]
    done = evals(f"tokenizers={name}", "options.average.grid=16", *common, plugins=(plugin,))
    assert done.returncode == 0, done.stderr
    (row,) = [label for label in table(out).index if label.startswith(name)]
    assert "grid=16" in row
    assert table(out).loc[row, "PSNR"] > 18, "a 16x16 grid of colours is recognisable"


def test_the_readme_opens_with_two_commands_that_do_all_set_up():
    blocks = re.findall(r"```(?:\w+)?\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "venv" in blocks[0]
    assert "pip install -c constraints.txt" in blocks[0]
    assert "evals.run suite=recon tokenizers=all" in blocks[0]
    assert "venv" in blocks[1]
    assert "pytest" in blocks[1]


def test_every_relative_link_of_the_docs_leads_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
