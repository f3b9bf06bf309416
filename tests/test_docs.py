"""What the documentation shows is what runs."""

import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support import ROOT, environment, evals, install_plugin, pictures, table


def snippet(page: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert found, f"{page} shows no {language}"
    return found[1]


def plugin_of(page: str, group: str, folder: Path) -> tuple[str, str, Path]:
    """A page's package, installed in `folder`: its name in the registry, its source, the folder."""
    source = snippet(page, "python")
    ((name, target),) = tomllib.loads(snippet(page, "toml"))["project"]["entry-points"][group].items()
    module, attribute = target.split(":")
    return name, source, install_plugin(folder, module, source, {name: attribute}, group)


def test_the_tokenizer_of_the_docs_runs_as_written(tmp_path: Path):
    name, source, plugin = plugin_of("adding-a-tokenizer.md", "lactok.tokenizers", tmp_path / "plugin")
    assert len(source.splitlines()) < 40
    out, folder = tmp_path / "out", pictures(tmp_path / "pictures")
    common = ["dataset=folder", f"dataset.root={folder}", f"out={out}", "metrics=[psnr,codes]"]
    done = evals(f"tokenizers={name}", "options.average.grid=16", *common, plugins=(plugin,))
    assert done.returncode == 0, done.stderr
    (row,) = [label for label in table(out).index if label.startswith(name)]
    assert "grid=16" in row
    assert table(out).loc[row, "PSNR"] > 18, "a 16x16 grid of colours is recognisable"


def test_the_dataset_of_the_docs_is_listed_and_read_as_written(tmp_path: Path):
    name, source, plugin = plugin_of("adding-a-dataset.md", "lactok.datasets", tmp_path / "plugin")
    assert len(source.splitlines()) < 30
    done = evals("list", "datasets", plugins=(plugin,), module="evals")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"{name} +40 computed gradients +yes", done.stdout)
    code = (
        "import sys; from pathlib import Path; from evals.datasets.base import DatasetRequest; "
        "from evals.datasets.registry import open_dataset; "
        f"dataset = open_dataset({name!r}, DatasetRequest(Path('unused'), limit=7)); "
        "images = [dataset.read(item) for item in dataset.items]; "
        "print(len({i.content_hash for i in dataset.items}), {i.shape for i in images}, 'torch' in sys.modules)"
    )
    read = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(plugin), capture_output=True, text=True
    )
    assert read.stdout.strip() == "7 {(64, 96, 3)} False", read.stderr


def test_the_dataset_of_the_docs_is_measured(tmp_path: Path):
    name, _, plugin = plugin_of("adding-a-dataset.md", "lactok.datasets", tmp_path / "plugin")
    out = tmp_path / "out"
    done = evals(f"dataset={name}", "limit=3", "tokenizers=identity", f"out={out}", "metrics=psnr", plugins=(plugin,))
    assert done.returncode == 0, done.stderr
    assert math.isinf(table(out).loc["identity", "PSNR"])


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
