"""The findings on the paper that can be computed, from its printed cells and from published configurations.

They must come out as facts.csv has them, which holds the others, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from evals.published.facts import Fact
from evals.published.tables import TABLES, PublishedFigure, published
from evals.suites.catalog import ENCODER_SIZES

PREFERENCE = ("ImageReward", "MPS", "HPSv2")
GENEVAL = ("GenEval two objects", "GenEval position", "GenEval colour attribution", "GenEval overall")
RECONSTRUCTION = ("rFID", "PSNR", "SSIM", "LPIPS")
LOWER = ("rFID", "LPIPS")
DATASETS = ("imagenet-val", "coco-val2017", "mjhq-5k", "flux-5k")
DOWNSAMPLING = 16
"""Pixels of a side by tokens of a side: LlamaGen's VQ-16 (section 1, appendix A)."""


@dataclass(frozen=True)
class Computed:
    """What the code finds: in words, and the verdict on the paper's statement."""

    found: str
    verdict: str


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a LlamaGen GPT; the defaults are GPT-XL's.

    Source: `GPT_XL` of FoundationVision/LlamaGen, autoregressive/models/gpt.py, commit ce98ec4. caption: width of the
    text states (flan-t5-xl), None for the class-conditional model with `classes` and the null class.
    """

    layers: int = 36
    width: int = 1280
    hidden: int = 3584
    vocabulary: int = 16384
    caption: int | None = 2048
    classes: int = 1000

    @property
    def parameters(self) -> int:
        """Trained values: token table, condition, blocks (query-key-value, output, three of the MLP, two norms), last
        norm and output layer."""
        condition = (
            (self.classes + 1) * self.width
            if self.caption is None
            else self.caption * self.width + self.width * self.width
        )
        block = 4 * self.width**2 + 3 * self.width * self.hidden + 2 * self.width
        return 2 * self.vocabulary * self.width + condition + self.layers * block + self.width


def disagreements(listed: Sequence[Fact]) -> list[str]:
    """Where the findings as listed and as computed differ, a line each; empty where they agree."""
    wrong = []
    stated = {fact.finding for fact in listed if fact.check == "computed"}
    wrong += [f"{name}: computed, and not in facts.csv" for name in CHECKS if name not in stated]
    for fact in listed:
        if fact.check != "computed":
            continue
        if fact.finding not in CHECKS:
            wrong.append(f"{fact.finding}: facts.csv says that it is computed; nothing computes it")
            continue
        now = CHECKS[fact.finding]()
        if (now.found, now.verdict) != (fact.found, fact.verdict):
            wrong.append(
                f"{fact.finding}: computed {now.found!r} ({now.verdict}); facts.csv has {fact.found!r} ({fact.verdict})"
            )
    return wrong


# --- the paper's cells


@cache
def _cells() -> dict[tuple[int, str, str, str], PublishedFigure]:
    return {(f.table, f.row, f.dataset, f.metric): f for table in TABLES for f in published(table) if f.printed}


def _figure(table: int, row: str, dataset: str, metric: str) -> PublishedFigure:
    return _cells()[table, row, dataset, metric]


def _of(row: str, dataset: str, metric: str) -> PublishedFigure:
    """A cell of Table 1 or 2, by dataset."""
    return _figure(1 if dataset in DATASETS[:2] else 2, row, dataset, metric)


def _score(row: str, metric: str) -> PublishedFigure:
    """A cell of Table 3."""
    return _figure(3, row, "geneval" if metric in GENEVAL else "coco-captions", metric)


def _sign(metric: str, one: PublishedFigure, other: PublishedFigure) -> str:
    """ "better", "equal" or "worse": `one` than `other`."""
    if one.value == other.value:
        return "equal"
    return "better" if (one.number < other.number) == (metric in LOWER) else "worse"


def _pair(name: str, one: PublishedFigure, other: PublishedFigure) -> str:
    return f"{name} {one.printed} against {other.printed}"


def _verdict(failed: Sequence[str], checked: int) -> str:
    return "holds" if not failed else "does not hold" if len(failed) == checked else "holds in part"


def _compared(pairs: Sequence[tuple[str, str, PublishedFigure, PublishedFigure]]) -> Computed:
    """ "better in A of B" and what is not. pairs: what, metric, the claimed better one, the other."""
    signs = {what: _sign(metric, one, other) for what, metric, one, other in pairs}
    failed = [f"{_pair(what, one, other)} ({signs[what]})" for what, _, one, other in pairs if signs[what] != "better"]
    found = f"better in {len(pairs) - len(failed)} of {len(pairs)}"
    return Computed("; ".join([found, *failed]), _verdict(failed, len(pairs)))


# --- findings


def _tokens() -> Computed:
    printed = [figure.row.split(", ")[1].split()[0] for figure in published(5) if figure.metric == "rFID"]
    sizes = ENCODER_SIZES["paper"]
    ours = [(size // DOWNSAMPLING) ** 2 for size in sizes]
    pairs = [f"{s} pixels give {s // DOWNSAMPLING} x {s // DOWNSAMPLING} = {n}" for s, n in zip(sizes, ours)]
    same = printed == [str(n) for n in ours]
    return Computed(f"{', '.join(pairs)}; printed {', '.join(printed)}", "holds" if same else "holds in part")


def _gpt_xl() -> Computed:
    text, classes = GPTConfig().parameters, GPTConfig(caption=None).parameters
    verdict = "holds" if round(text / 1e6) == 77 else "does not hold"
    return Computed(f"{text:,} with the caption projection; {classes:,} class-conditional (LlamaGen's 775M)", verdict)


def _ratio() -> Computed:
    vqgan = (1024 // DOWNSAMPLING) ** 2
    return Computed(
        f"1024 pixels at {DOWNSAMPLING}x give {vqgan} tokens; {vqgan} / 256 = {vqgan // 256}",
        "holds" if vqgan == 16 * 256 else "does not hold",
    )


def _table_6_row() -> Computed:
    row = "LacTokGen-T*"
    ours = tuple(_score(row, metric).printed for metric in PREFERENCE)
    scales: dict[str, list[str]] = {}
    for figure in published(6):
        scales.setdefault(figure.row.split("scale ")[1], []).append(figure.printed)
    equal = [scale for scale, printed in scales.items() if tuple(printed) == ours]
    near = [f"scale {scale}: {', '.join(printed)}" for scale, printed in scales.items() if scale in ("2", "3")]
    found = f"Table 3 has {', '.join(ours)}; {'; '.join(near)}; equal rows: {', '.join(equal) or 'none'}"
    return Computed(found, "holds" if equal else "does not hold")


def _seed_ssim() -> Computed:
    cells = [figure for figure in _cells().values() if figure.row == "SeedTok+" and figure.metric == "SSIM"]
    nan = [figure for figure in cells if figure.printed == "nan"]
    return Computed(
        f"{len(nan)} of {len(cells)} cells are nan; SSIM of any valid 8-bit image is finite",
        "does not hold" if nan else "holds",
    )


def _against_llamagen() -> Computed:
    return _compared(
        [
            (f"{metric} {dataset}", metric, _of("LacTok-H", dataset, metric), _of("LlamaGen", dataset, metric))
            for metric in ("rFID", "SSIM", "LPIPS")
            for dataset in DATASETS
        ]
    )


def _psnr_against_llamagen() -> Computed:
    pairs = [(_of("LacTok-H", dataset, "PSNR"), _of("LlamaGen", dataset, "PSNR")) for dataset in DATASETS]
    worse = [dataset for dataset, pair in zip(DATASETS, pairs) if _sign("PSNR", *pair) == "worse"]
    gaps = [f"{one.number - other.number:+.2f}" for one, other in pairs]
    return Computed(f"lower on {len(worse)} of 4 datasets, by {', '.join(gaps)} dB", "open")


def _reconstruction_loss() -> Computed:
    return _compared(
        [
            (
                f"{metric} {other}",
                metric,
                _figure(4, "LacTok-H", "mjhq-5k", metric),
                _figure(4, other, "mjhq-5k", metric),
            )
            for other in ("LlamaGen", "VQ-LADD")
            for metric in ("rFID", "SSIM", "LPIPS")
        ]
    )


def _ladd_alone() -> Computed:
    return _compared(
        [
            (metric, metric, _figure(4, "LlamaGen", "mjhq-5k", metric), _figure(4, "VQ-LADD", "mjhq-5k", metric))
            for metric in ("PSNR", "SSIM", "LPIPS")
        ]
    )


def _tlcm_over_hypersd() -> Computed:
    return _compared(
        [
            (m, m, _figure(4, "VQ-LADD+TLCM", "mjhq-5k", m), _figure(4, "VQ-LADD+HyperSD", "mjhq-5k", m))
            for m in RECONSTRUCTION
        ]
    )


def _more_tokens() -> Computed:
    rows = list(dict.fromkeys(figure.row for figure in published(5)))
    return _compared(
        [
            (
                f"{metric} {more.split(', ')[1]}",
                metric,
                _figure(5, more, "mjhq-5k", metric),
                _figure(5, fewer, "mjhq-5k", metric),
            )
            for fewer, more in pairwise(rows)
            for metric in RECONSTRUCTION
        ]
    )


def _rows_that_repeat() -> Computed:
    same = {
        (4, "LlamaGen"): "LlamaGen", (4, "LacTok-H"): "LacTok-H", (5, "LacTok-H, 256 tokens"): "LacTok-H",
    }  # fmt: skip
    other = [
        f"Table {table} {row} {metric}"
        for (table, row), name in same.items()
        for metric in RECONSTRUCTION
        if _figure(table, row, "mjhq-5k", metric).printed != _of(name, "mjhq-5k", metric).printed
    ]
    found = f"{len(same) * len(RECONSTRUCTION)} cells of Tables 4 and 5 repeat Table 2's MJHQ-5K"
    return Computed("; ".join([found, *other]), _verdict(other, len(same) * len(RECONSTRUCTION)))


def _headline() -> Computed:
    coco, imagenet = _of("LacTok-H", "coco-val2017", "rFID"), _of("LacTok-H", "imagenet-val", "rFID")
    found = f"Table 1, LacTok-H: {coco.printed} on MSCOCO-2017, {imagenet.printed} on ImageNet"
    return Computed(found, "holds" if (coco.value, imagenet.value) == (10.8, 2.78) else "does not hold")


def _lower_rfid(datasets: Sequence[str], ours: Sequence[str]) -> Computed:
    return _compared(
        [
            (f"{row} {dataset} {other}", "rFID", _of(row, dataset, "rFID"), _of(other, dataset, "rFID"))
            for dataset in datasets
            for row in ours
            for other in ("SeedTok+", "TiTok-S-128", "LlamaGen", "FlexTok")
        ]
    )


def _imagenet_others() -> Computed:
    return _compared(
        [
            (f"{metric} {other}", metric, _of("LacTok-H", "imagenet-val", metric), _of(other, "imagenet-val", metric))
            for other in ("TiTok-S-128", "FlexTok")
            for metric in ("PSNR", "SSIM", "LPIPS")
        ]
    )


def _star_rfid() -> Computed:
    return _compared(
        [
            (f"{row} {dataset}", "rFID", _of("LacTok-H", dataset, "rFID"), _of(row, dataset, "rFID"))
            for row in ("LacTok-H*", "LacTok-T*")
            for dataset in DATASETS[:3]
        ]
    )


def _t_over_h() -> Computed:
    return _compared(
        [
            (f"{metric} {dataset}", metric, _of("LacTok-T*", dataset, metric), _of("LacTok-H*", dataset, metric))
            for metric in ("rFID", "LPIPS")
            for dataset in DATASETS
        ]
    )


def _no_plain_t() -> Computed:
    rows = {figure.row.split(",")[0] for figure in _cells().values()}
    measured = [row for row in ("LacTok-T", "LacTokGen-T") if row in rows]
    return Computed(
        f"rows without the star in Tables 1 to 6: {', '.join(measured) or 'none'}",
        "holds" if measured else "does not hold",
    )


def _best_geneval() -> Computed:
    others = list(dict.fromkeys(f.row for f in published(3) if f.printed and not f.row.startswith("LacTokGen")))
    best = max((_score(row, "GenEval overall") for row in others), key=lambda figure: figure.number)
    ours = _score("LacTokGen-T*", "GenEval overall")
    return Computed(
        f"{ours.printed}; the next of Table 3 is {best.row} with {best.printed}",
        "holds" if ours.number > best.number else "does not hold",
    )


def _geneval_gaps() -> Computed:
    ours = _score("LacTokGen-T*", "GenEval overall").number
    gaps = {row: round(ours - _score(row, "GenEval overall").number, 2) for row in ("LlamaGen", "SDXL")}
    found = ", ".join(f"{row} by {gap:.2f}" for row, gap in gaps.items())
    return Computed(found, "holds" if gaps == {"LlamaGen": 0.41, "SDXL": 0.18} else "does not hold")


def _against(rows: Sequence[str], metrics: Sequence[str]) -> Computed:
    return _compared(
        [
            (f"{metric} {row}", metric, _score("LacTokGen-T*", metric), _score(row, metric))
            for row in rows
            for metric in metrics
            if _score(row, metric).value is not None
        ]
    )


def _better_data() -> Computed:
    return _compared([(m, m, _score("LacTokGen-H*", m), _score("LacTokGen-H", m)) for m in (*GENEVAL, *PREFERENCE)])


def _guidance() -> Computed:
    slower, failed = [], []
    for metric in PREFERENCE:
        values = [figure.number for figure in published(6) if figure.metric == metric]
        before, *after = (round(b - a, 3) for a, b in pairwise(values))
        slower.append(f"{metric} {before:+g} then {', '.join(f'{step:+g}' for step in after)}")
        if max(after) > before:
            failed.append(metric)
    found = f"scale 1.5 to 2, then to 3 and 7: {'; '.join(slower)}"
    return Computed(found, _verdict(failed, len(PREFERENCE)))


def _pairs_seen() -> Computed:
    seen = 20_000 * 320
    return Computed(
        f"20,000 iterations of 320 are {seen:,} of 20,000,000 pairs: {seen / 20e6:.0%}, less than once", "open"
    )


def _images_seen() -> Computed:
    seen = (80_000 + 20_000) * 4
    return Computed(
        f"100,000 iterations of 4 are {seen:,} images; ImageNet has 1,281,167: {seen / 1_281_167:.0%}", "open"
    )


CHECKS: dict[str, Callable[[], Computed]] = {
    "token-counts": _tokens,
    "gpt-xl-parameters": _gpt_xl,
    "compression": _ratio,
    "table-3-against-table-6": _table_6_row,
    "seedtok-ssim": _seed_ssim,
    "lactok-h-over-llamagen": _against_llamagen,
    "psnr-comparable": _psnr_against_llamagen,
    "reconstruction-loss": _reconstruction_loss,
    "ladd-alone": _ladd_alone,
    "tlcm-over-hypersd": _tlcm_over_hypersd,
    "more-tokens": _more_tokens,
    "repeated-rows": _rows_that_repeat,
    "headline-rfid": _headline,
    "rfid-mscoco": lambda: _lower_rfid(("coco-val2017",), ("LacTok-H",)),
    "rfid-mjhq-flux": lambda: _lower_rfid(("mjhq-5k", "flux-5k"), ("LacTok-H",)),
    "rfid-flux-starred": lambda: _lower_rfid(("flux-5k",), ("LacTok-H*", "LacTok-T*")),
    "imagenet-psnr-ssim-lpips": _imagenet_others,
    "starred-rfid": _star_rfid,
    "t-star-over-h-star": _t_over_h,
    "lactok-t-unstarred": _no_plain_t,
    "geneval-best": _best_geneval,
    "geneval-gaps": _geneval_gaps,
    "sdxl-preference": lambda: _against(("SDXL",), PREFERENCE),
    "llamagen-preference": lambda: _against(("LlamaGen",), PREFERENCE),
    "show-o-and-hart": lambda: _against(("Show-o", "HART"), (*GENEVAL, *PREFERENCE)),
    "sd3-and-flux-geneval": lambda: _against(("SD3", "FLUX.1-dev"), GENEVAL),
    "h-star-over-h": _better_data,
    "guidance": _guidance,
    "pairs-seen": _pairs_seen,
    "images-seen": _images_seen,
}
"""By finding, what computes it."""
