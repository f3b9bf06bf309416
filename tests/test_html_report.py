"""report.html: one file that holds a run's table, plots and images, safe against any name and silent on the network."""

import base64
import dataclasses
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFont

from evals.config import compose_config
from evals.engine import run as engine
from evals.engine.job import CHUNK, MOST_VIEWED, Job
from evals.report import html_images
from evals.report.contact import LABELS, _fitted, height_of
from evals.report.html import render, write_page
from evals.report.html_data import PageData, ShownItem, script_json
from evals.report.rate import spaced
from evals.report.symbols import OPTION_LINE, OPTION_LINES, short_labels
from evals.tasks.base import THUMBNAIL_SIDE, pack_thumbnails, unpack_files, unpack_images
from lactok import registry
from lactok.items import Item
from tests.browser import Browser, find
from tests.support import TOY, install_plugin, pictures
from tests.test_report import generation_run, make_run

EVIL = "</script><script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """What a page is made of: elements with their attributes, and the text of each script by its id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._script = dict(attrs).get("id") or ""
            self.scripts.append((self._script, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.texts.append(data)
        else:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)

    def json(self, name: str):
        return json.loads(dict(self.scripts)[name])

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == tag]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[engine.Finished]:
    """A run of a toy that draws noise, twice an image, on photographs with names of all kinds."""
    source = TOY + "\n\nclass Noisy(Toy):\n    noise = True\n"
    plugin = install_plugin(tmp_path_factory.mktemp("plugin"), "toyplugin", source, {"toy": "Toy", "noisy": "Noisy"})
    sys.path.insert(0, str(plugin))
    registry.entries.cache_clear()
    data = pictures(tmp_path_factory.mktemp("pictures"), 5)
    (data / "picture 00.png").rename(data / f"{EVIL.replace('/', '_')}.png")
    os.rename(data / "picture 01.png", os.fsencode(data) + b"/caf\xe9.png")
    out = tmp_path_factory.mktemp("out")
    common = ["dataset=folder", f"dataset.root='{data}'", f"out='{out}'", "metrics=[psnr,ssim]", "save_images=true"]
    yield engine.run(compose_config([*common, "tokenizers=[toy,noisy]", "seeds=2"]), quiet=True)
    sys.path.remove(str(plugin))
    registry.entries.cache_clear()
    sys.modules.pop("toyplugin", None)


@pytest.fixture(scope="module")
def page(finished: engine.Finished) -> Page:
    return Page(write_page(finished).read_text(encoding="utf-8"))


def test_the_page_holds_the_run(finished: engine.Finished, page: Page):
    labels = [row.label for row in finished.record.rows]
    lines = [attributes for attributes in page.of("tr") if "data-row" in attributes]
    assert [int(line["data-row"] or -1) for line in lines] == list(range(len(labels)))
    data = page.json("data")
    assert [row["label"] for row in data["rows"]] == labels
    assert len(data["items"]) == 5
    noisy = labels.index("noisy")
    values = finished.per_image["noisy"].values["PSNR"]
    assert np.allclose(data["values"][noisy]["PSNR"], values, rtol=1e-4)
    assert data["values"][labels.index("identity")]["PSNR"] == [["inf"] * 5]
    assert (data["seeds"], data["model"]) == (2, "tokenizer")
    assert finished.record.protocol_hash in "".join(page.texts)
    assert "never compare" in "".join(page.texts)
    assert all(version in "".join(page.texts) for version in finished.record.versions.values())


def test_intervals_stand_below_the_figures_and_in_their_titles(finished: engine.Finished, page: Page):
    titles = [attributes.get("title") or "" for attributes in page.of("td")]
    assert sum("95 % interval" in title for title in titles) >= len(finished.record.rows)
    psnr = next(row for row in finished.record.rows if row.label == "toy").cells["PSNR"]
    orders = [attributes.get("data-order") for attributes in page.of("td")]
    assert str(psnr.value) in orders


def test_thumbnails_are_of_the_scored_images(finished: engine.Finished, page: Page):
    thumbnails, labels = page.json("thumbnails"), [row.label for row in finished.record.rows]
    assert sorted(map(int, thumbnails)) == list(range(5))
    job = finished.job
    run = next(run for run in job.runs if run.row.label == "noisy")
    for seed in (0, 1):
        images = unpack_images(job.cache.read(job.task.images(run, job.chunks[0], seed)), job.device)
        for place in range(5):
            file = base64.b64decode(thumbnails[str(place)][str(labels.index("noisy"))][seed])
            shown = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), np.float32)
            assert shown.shape == (128, 128, 3)
            assert np.abs(shown - images[place].permute(1, 2, 0).numpy()).mean() < 4
    assert len(thumbnails["0"]["reference"]) == 1


def test_whole_images_lie_beside_the_page_where_the_run_saved_them(finished: engine.Finished, page: Page):
    told = page.json("data")["images"]
    labels = [row.label for row in finished.record.rows]
    assert told["whole"][str(labels.index("noisy"))] == [0, 1]
    assert told["whole"]["reference"] == [0]
    folder = finished.folder / told["folder"]
    identity, reference = (folder / row / "000003-0.png" for row in (str(labels.index("identity")), "reference"))
    assert np.array_equal(np.asarray(Image.open(identity)), np.asarray(Image.open(reference)))


def test_thumbnails_of_many_images_lie_beside_the_page(
    finished: engine.Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(html_images, "MOST_EMBEDDED", 4)
    moved = dataclasses.replace(finished, folder=tmp_path)
    (tmp_path / "report_images").mkdir()
    (tmp_path / "report_images" / "000099.js").write_text("of an earlier report")
    page = Page(write_page(moved).read_text(encoding="utf-8"))
    assert page.json("thumbnails") == {}
    assert page.json("data")["images"]["inside"] is False
    scripts = sorted((tmp_path / "report_images").glob("*.js"))
    assert [path.name for path in scripts] == [f"{index:06}.js" for index in range(5)]
    call = re.fullmatch(r"lactokImages\(2,(.*)\)\n", scripts[2].read_text())
    assert call
    assert "reference" in json.loads(call[1])


def test_images_that_are_not_stored_are_left_out(finished: engine.Finished, tmp_path: Path):
    """A run from before thumbnails were kept gets its page, and nothing is made again."""
    job = dataclasses.replace(finished.job, cache=type(finished.job.cache)(tmp_path / "cache"), save_images=False)
    bare = dataclasses.replace(finished, folder=tmp_path, job=job)
    text = write_page(bare).read_text(encoding="utf-8")
    assert "No images of this run are in its store" in text
    assert Page(text).json("data")["images"]["shown"] == 0
    assert not list((tmp_path / "cache").iterdir())


def test_names_can_not_leave_their_place(page: Page):
    """Names with tags, quotes and bytes that are no UTF-8 are text wherever they stand."""
    names = [name for name, _, _ in page.json("data")["items"]]
    assert any("<script>alert(1)<" in name and "onerror=" in name for name in names)
    assert any("caf\\xe9" in name for name in names)
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert not any("alert(1)" in text for name, text in page.scripts if not name)


@pytest.mark.parametrize("bad", [EVIL, "caf\udce9", "\u2028 line", "-->", "<!--<script>"])
def test_any_text_of_a_record_is_escaped(bad: str):
    run = make_run(dataset=bad, command=f"python {bad}", notes=[bad])
    run.rows[2].label = run.rows[2].name = f"{bad}[a={bad}]"
    run.rows[2].training = run.rows[3].error = bad
    items = [ShownItem(0, bad, bad, bad)]
    data = PageData(run, items, {run.rows[2].label: {bad: np.array([[1.5]])}}, {run.rows[2].label: {"0/0": [bad]}})
    text = render(data, {"inside": True, "shown": 1, "whole": {}, "folder": "x"}, {0: {"2": ["AAAA"]}})
    text.encode()  # the file is UTF-8
    plain = Page(render(dataclasses.replace(data, run=make_run(), items=[]), {"shown": 1}, {}))
    found = Page(text)
    for tag in ("script", "img", "style"):
        assert len(found.of(tag)) == len(plain.of(tag))
    assert found.json("data")["reasons"][2]["0/0"] == [bad.encode("utf-8", "backslashreplace").decode()]


def test_json_in_a_script_has_no_markup():
    text = script_json({"a": "</script><!-- & \u2028 \udce9"})
    assert not set("<>&\u2028") & set(text)
    assert text.isascii()
    with pytest.raises(ValueError, match="JSON"):
        script_json([float("nan")])


def test_the_page_asks_for_nothing(page: Page):
    """No element of it names another place, and its policy forbids what a script might ask for."""
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:")
    (policy,) = [a["content"] or "" for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert "connect-src" not in policy
    assert not any("@import" in text or "url(" in text for _, text in page.scripts[:1])


def test_published_figures_stand_beside_measured_ones(monkeypatch: pytest.MonkeyPatch):
    run = make_run()
    one = SimpleNamespace(figure=SimpleNamespace(value=21.25), difference=1.244, verdict="outside the interval")
    monkeypatch.setattr(
        "evals.report.html_data.published_comparisons",
        lambda _, row: {"PSNR": one} if row.label == "a-mini" else {},
    )
    text = render(PageData(run, [], {}), {"shown": 0}, {})
    assert text.count("paper 21.25 (+1.24; outside the interval)") == 1


def test_a_page_of_prompts_shows_them_with_the_reasons_of_the_judge():
    run = generation_run()
    items = [ShownItem(0, "00000", "00000", "a red <b>cube</b>")]
    page = PageData(run, items, {"a": {"CLIPScore": np.array([[31.0], [30.0]])}}, {"a": {"0/1": ["expected cube>=1"]}})
    data = Page(render(page, {"shown": 0}, {})).json("data")
    assert (data["unit"], data["model"], data["seeds"]) == ("prompts", "generator", 2)
    assert data["items"] == [["00000", "00000", "a red <b>cube</b>"]]
    assert data["reasons"][0] == {"0/1": ["expected cube>=1"]}


# --- labels, spread, thumbnails


def test_short_labels_tell_rows_apart():
    files = "weights=pixel-hypersd-mini.safetensors,base=ldm-mini.safetensors,vq=vq-mini.safetensors"
    long = f"lactok-h-mini[{files},steps={{}}]"
    labels = [
        long.format(2),
        long.format(4),
        "identity",
        "b[sizes=[1,2],t=3]",
        "b",
        *(f"c[x={'y' * 60}{i}]" for i in "12"),
    ]
    short = short_labels(labels)
    assert short[:5] == [
        ("lactok-h-mini", "steps=2"),
        ("lactok-h-mini", "steps=4"),
        ("identity",),
        ("b", "sizes=[1,2], t=3"),
        ("b",),
    ]
    assert short[5][0] == "c"
    assert short[6][0] == "c (2)"
    (alone,) = short_labels([long.format(2)])
    assert len(alone) == 1 + OPTION_LINES
    assert alone[-1].endswith("+2")
    assert all(len(line) <= OPTION_LINE for line in alone[1:])


@pytest.mark.parametrize("height", [24, 60, 128])
def test_a_label_stays_within_its_row(height: int):
    lines = _fitted([("lactok-h-mini", 17, "black"), ("weights=" + "w" * 200, 13, "black")], LABELS - 12, height)
    assert 0 < height_of(lines) <= height
    assert lines[0][0].startswith("lactok")
    assert all(ImageFont.load_default(size).getlength(text) <= LABELS - 8 for text, size, _ in lines)


def test_labels_of_a_plot_are_moved_apart_and_stay_inside():
    moved = spaced([0.5, 0.5, 0.51, 0.02, 0.01, 1.0], 0.06)
    order = sorted(moved)
    assert min(b - a for a, b in pairwise(order)) > 0.059
    assert order[0] >= 0.03
    assert order[-1] <= 1
    assert spaced([0.2, 0.8], 0.06) == [0.2, 0.8]


def test_the_contact_sheet_spreads_over_single_images():
    items = tuple(Item(f"image {i:03}", f"image {i:03}", "0") for i in range(80))
    dataset = SimpleNamespace(items=items)
    assert engine.spread(dataset, 8) == list(range(0, 80, 10))  # type: ignore[arg-type]  # items are all it reads
    few = SimpleNamespace(items=[dataclasses.replace(item, cluster=item.id[-1:]) for item in items])
    assert len({few.items[i].cluster for i in engine.spread(few, 8)}) == 8  # type: ignore[arg-type]


@pytest.mark.parametrize(("chunks", "expected"), [(3, 3), (MOST_VIEWED // CHUNK, MOST_VIEWED // CHUNK), (1000, 312)])
def test_of_a_large_dataset_thumbnails_are_spread(chunks: int, expected: int):
    dataset = SimpleNamespace(items=[Item("x", "x", "0")] * (chunks * CHUNK))
    job = Job(None, dataset, [], None, None, None, 1)  # type: ignore[arg-type]
    viewed = [chunk.start // CHUNK for chunk in job.chunks if job.viewed(chunk)]
    assert len(viewed) == expected
    assert np.diff(viewed).max() <= -(-chunks // expected)


def test_thumbnails_are_small_and_whole():
    """Of images of different sizes; a small one keeps its size."""
    import torch
    from skimage import data

    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)
    arrays = pack_thumbnails([photo, photo[:, :40, :60]])
    sizes = [Image.open(io.BytesIO(file)).size for file in unpack_files(SimpleNamespace(arrays=arrays), "jpeg")]  # type: ignore[arg-type]
    assert sizes == [(THUMBNAIL_SIDE, THUMBNAIL_SIDE), (60, 40)]


# --- in a browser


def test_in_a_browser_it_works_without_errors_or_requests(finished: engine.Finished, page: Page, tmp_path: Path):
    path, rows = finished.folder / "report.html", finished.record.rows
    with Browser(find(), tmp_path) as tab:
        tab.call("Page.navigate", url=path.as_uri())
        tab.until(
            "document.querySelectorAll('#grid canvas').length && document.querySelectorAll('.main-svg').length > 2"
        )
        (paint,) = tab.evaluate("performance.getEntriesByName('first-contentful-paint').map((one) => one.startTime)")
        assert paint < 2000
        assert tab.evaluate("byId('place').textContent") == "1 of 5"
        for key, expected in {
            "ArrowRight": "byId('place').textContent === '2 of 5'",
            "2": "byId('right').value === '1'",
            "d": "byId('difference').checked",
            "?": "byId('help').open",
        }.items():
            press = "document.body.dispatchEvent(new KeyboardEvent('keydown', { key: %s, bubbles: true }))"
            tab.evaluate(press % json.dumps(key))
            tab.until(expected)
        assert tab.evaluate("document.querySelectorAll('#grid canvas').length") == len(rows) + 1

        tab.evaluate("document.querySelector('#table th[data-column=\"2\"]').click()")
        psnr = [row.cells["PSNR"].value or -1 for row in rows]
        order = tab.evaluate("[...document.querySelectorAll('#table tbody tr')].map((row) => Number(row.dataset.row))")
        assert order == sorted(range(len(rows)), key=lambda i: -psnr[i])

        noisy, toy = (next(i for i, row in enumerate(rows) if row.label == label) for label in ("noisy", "toy"))
        chosen = {"sort-metric": "0", "sort-row": str(noisy), "sort-less": str(toy)}
        for name, value in chosen.items():
            tab.evaluate(f"byId('{name}').value = '{value}'; byId('{name}').dispatchEvent(new Event('change'))")
        behind = finished.per_image["noisy"].values["PSNR"][0] - finished.per_image["toy"].values["PSNR"][0]
        assert tab.evaluate("viewer.order") == np.argsort(behind, kind="stable").tolist()
        assert tab.evaluate("viewer.right") == str(noisy), "what is sorted by is what is looked at"

        cell = "document.querySelector('#table tr[data-row=\"%s\"]').children[2]"
        tab.evaluate(f"{cell % toy}.click()")
        assert tab.evaluate("viewer.order") == np.argsort(finished.per_image["toy"].values["PSNR"][0]).tolist()
        assert tab.evaluate("[viewer.right, byId('sort-less').value, byId('place').textContent]") == [
            str(toy),
            "",
            "1 of 5",
        ]
        tab.until("byId('why').textContent.includes('toy, places among 5 images: PSNR')")
        said = tab.evaluate("byId('why').textContent")
        assert re.search(r"toy, places among 5 images: PSNR [\d.]+ dB \(worst\), SSIM 0\.\d+ \((\d.. )?worst\)", said)
        assert re.search(r"The other rows on it, by PSNR: noisy \((\d.. )?worst\)", said)
        identity = next(i for i, row in enumerate(rows) if row.label == "identity")
        tab.evaluate(f"{cell % identity}.click()")
        tab.until(f"viewer.right === '{identity}' && byId('why').textContent === ''")  # all are alike

        tab.evaluate("byId('filter').value = 'NOISY'; byId('filter').dispatchEvent(new Event('input'))")
        tab.until("document.querySelectorAll('#grid canvas').length === 2")
        assert (
            tab.evaluate("[...document.querySelectorAll('#table tbody tr')].filter((row) => !row.hidden).length") == 1
        )
        tab.evaluate("byId('theme').click(); byId('theme').click()")
        assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
        tab.evaluate("new Promise((done) => setTimeout(done, 300))")
        assert tab.problems() == []
        assert all(url.startswith(finished.folder.as_uri()) for url in tab.requests()), tab.requests()


def test_in_a_browser_images_beside_the_page_are_found(
    finished: engine.Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = find()
    monkeypatch.setattr(html_images, "MOST_EMBEDDED", 4)
    job = dataclasses.replace(finished.job, save_images=False)
    (tmp_path / "run").mkdir()
    path = write_page(dataclasses.replace(finished, folder=tmp_path / "run", job=job))
    with Browser(program, tmp_path / "profile") as tab:
        tab.call("Page.navigate", url=path.as_uri())
        tab.until(f"document.querySelectorAll('#grid canvas').length === {len(finished.record.rows) + 1}")
        some = "[...cells[%d].canvas.getContext('2d').getImageData(30, 30, 40, 40).data].reduce((a, b) => a + b)"
        both = f"new Promise((done) => setTimeout(done, 200)).then(() => [{some % 0}, {some % 2}])"
        whole = tab.evaluate(both)
        tab.evaluate("moveTo(0.3, 0.3, 8)")
        part = tab.evaluate(both)
        assert whole[0] != part[0], "the first image is not zoomed"
        assert whole[1] != part[1], "another image is not zoomed with it"
        tab.evaluate("byId('difference').click()")
        opaque_black = 40 * 40 * 255
        identity = next(i for i, row in enumerate(finished.record.rows) if row.label == "identity") + 1
        assert tab.evaluate(both.replace("cells[2]", f"cells[{identity}]"))[1] == opaque_black
        assert [told for told in tab.problems() if "getImageData" not in told] == []  # that the test reads canvases
