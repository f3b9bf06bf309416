"""`python -m evals score references=DIR images=DIR`: images that exist, as rows of a run; no tokenizer is needed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evals.config import ConfigError, compose_config

HELP = """\
usage: python -m evals score references=DIR images=DIR [images.NAME=DIR ...] [key=value ...]
       python -m evals score prompts=FILE images=DIR [images.NAME=DIR ...] metrics=[NAME,...] [key=value ...]

Scores folders of images against the folder of their references: each is a row of a run, with the metrics, intervals,
report and cache that any run has. images=DIR is a row called as the folder is, images.NAME=DIR one called NAME.

  pair=name|stem|CSV      which image is whose: the same path below both folders, the same without the file's ending, or
                          a CSV with the columns reference and image, paths below both folders               [name]
  protocol=NAME           as evals.run has it (docs/protocol.md). References of one square size are scored at that
                          size unless a protocol is named                                       [references' size]
  resize=true|false       An image of the evaluation size is scored as it is, one of its reference's size goes to the
                          evaluation size as the reference does. Another size is an error or, with true, resized by
                          the protocol's back_filter, as what a tokenizer decodes is                        [false]
  unpaired=stop|skip      stop with the list of all images and references without a counterpart; or count such
                          references as refused (max_refused=N|P% of them, 1% by default) and leave such images aside
                                                                                                             [stop]
  calibration=true|false  the rows that say what figures mean                                               [false]
  prompts=FILE|NAME       of generation, in place of references: a prompt a line, or a registered data set of prompts
                          (geneval). DIR is then in GenEval's layout, or a table of prompts and files
                          (docs/adding-a-generator.md)

All other keys are those of evals.run (--help there): metrics=[psnr,rfid], limit=N, dataset.cluster=CSV, device=cuda,
out=DIR, ... The run that this makes is recorded as a command of evals.run, which resumes it.

Exit status: 0 all rows measured; 1 a row or a metric failed; 2 the command or the images can't be used.
"""
# Keys that this command sets itself, with what says the same here.
TAKEN = {
    "suite": "references or prompts",
    "tokenizers": "images",
    "generators": "images",
    "dataset": "references or prompts",
    "dataset.root": "references or prompts",
}
OWN = ("references", "prompts", "images", "pair", "resize", "unpaired")
# Names of each kind that an error lists.
LISTED = 20
# By the side of square references: the shipped protocol of that size.
BY_SIDE = {128: "mini-128", 256: "native-256", 1024: "paper-1024"}
OTHER_SIDE = "native-256"


class ScoreError(Exception):
    """The images can't be scored; the message lists all that is wrong and the way out. Exit status 2."""


@dataclass
class Asked:
    """A command line. images: row's name to folder; rest: the keys of evals.run; flags: -v and the like."""

    given: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)

    def rest_has(self, key: str) -> bool:
        """Whether evals.run is given the key or, of a group, one of its fields."""
        return any(word.lstrip("+").split("=")[0].split(".")[0] == key for word in self.rest)


def main(argv: list[str]) -> int:
    """See HELP."""
    if not argv or any(a in ("-h", "--help", "help") for a in argv):
        print(HELP, end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    from evals.run import main as run
    from lactok.registry import RegistryError

    try:
        asked = parse(argv)
        overrides = of_prompts(asked) if "prompts" in asked.given else of_references(asked)
    except (ScoreError, ConfigError, RegistryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run([*asked.flags, *overrides])


def parse(argv: Sequence[str]) -> Asked:
    """Raises ScoreError for words that make no command."""
    asked = Asked()
    for word in argv:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            asked.flags.append(word)
        elif not equals:
            raise ScoreError(f"{word!r} is not of the form key=value; `python -m evals score --help` lists the keys")
        elif key in TAKEN:
            raise ScoreError(f"{key}= is set by this command: name {TAKEN[key]}")
        elif (key in OWN or key.startswith("images.")) and not value.strip():
            raise ScoreError(f"{key}= is empty (an unset shell variable?)")
        elif key == "images" or key.startswith("images."):
            _add_images(asked, key.removeprefix("images").removeprefix("."), value)
        elif key in OWN:
            if key in asked.given:
                raise ScoreError(f"{key} is given twice: give it once")
            asked.given[key] = value
        else:
            asked.rest.append(word)
    if ("references" in asked.given) == ("prompts" in asked.given):
        raise ScoreError("name references=DIR, the images that yours are compared with, or prompts=FILE: one of both")
    if not asked.images:
        raise ScoreError("name the images that are to be scored: images=DIR, or images.NAME=DIR for each row")
    _choice(asked, "unpaired", ("stop", "skip"))
    _choice(asked, "resize", ("false", "true"))
    if "prompts" in asked.given and (wrong := [key for key in ("pair", "resize") if key in asked.given]):
        raise ScoreError(f"{wrong[0]}= is for references, not for prompts: leave it out")
    return asked


def _add_images(asked: Asked, name: str, value: str) -> None:
    name = name or Path(value).expanduser().resolve().name
    if not name or set(name) & set("=[],/\\"):
        raise ScoreError(f"the name of a row is {name!r}: expected text without = [ ] , / and \\; images.NAME=DIR")
    if name in asked.images:
        raise ScoreError(f"two rows are called {name}: name them apart by images.NAME=DIR")
    asked.images[name] = value


def _choice(asked: Asked, key: str, choices: tuple[str, ...]) -> None:
    value = asked.given.get(key, choices[0])
    if value not in choices:
        raise ScoreError(f"{key}={value}: expected {' or '.join(choices)}")


def of_prompts(asked: Asked) -> list[str]:
    """The overrides of evals.run that score images of prompts."""
    from evals.datasets.base import PromptDataset
    from evals.datasets.registry import dataset_class, dataset_names

    prompts, dataset = asked.given["prompts"], []
    if not Path(prompts).expanduser().exists() and prompts in dataset_names():
        if not issubclass(dataset_class(prompts), PromptDataset):
            raise ScoreError(f"prompts={prompts} is a data set of images: name it by references, as a folder")
        dataset = [f"dataset={prompts}"]
    else:
        dataset = ["dataset=prompts", f"dataset.root={_quoted(prompts)}"]
    skip = ["options.folder.missing=refuse"] if asked.given.get("unpaired") == "skip" else []
    usual = [] if asked.rest_has("scale") else ["scale=mini"]  # no GPU is needed where nothing is generated
    return ["suite=generate", "generators=folder", *usual, *dataset, _roots(asked), *skip, *_rest(asked)]


def of_references(asked: Asked) -> list[str]:
    """The overrides of evals.run that score images against references. Raises ScoreError listing all that is wrong."""
    from evals.datasets.base import spread
    from evals.tasks.protocol import ReconstructionProtocol
    from lactok.images.folder import list_folder

    folder = Path(asked.given["references"]).expanduser()
    if not folder.is_dir():
        raise ScoreError(f"references={folder} is no folder (absolute: {folder.absolute()})")
    references = list_folder(folder).images
    if not references:
        raise ScoreError(f"references={folder} holds no images")
    base = ["suite=recon", "tokenizers=folder", "dataset=folder", f"dataset.root={_quoted(asked.given['references'])}"]
    base += [_roots(asked), f"options.folder.pair={_quoted(asked.given.get('pair', 'name'))}"]
    base += [f"options.folder.resize={asked.given.get('resize', 'false')}"]
    limit = compose_config([*base, *_rest(asked)]).limit
    wanted = {name: references[name] for name in spread(sorted(references), limit)}
    problems = Problems()
    sizes = problems.sizes("the references", wanted, told="on_bad_image=skip" not in asked.rest)
    if not (asked.rest_has("protocol") or asked.rest_has("scale")):
        base += _protocol_of(sizes, asked.given["references"])
    overrides = [*base, *_rest(asked)]
    protocol = compose_config(overrides).make_protocol()
    assert isinstance(protocol, ReconstructionProtocol)
    _check_pairs(asked, sorted(references), sizes, protocol.eval_size, problems)
    if problems.lines:
        raise ScoreError(str(problems))
    return overrides


def _check_pairs(
    asked: Asked, references: Sequence[str], sizes: Mapping[str, tuple[int, int]], side: int, problems: Problems
) -> None:
    """Adds what is wrong with each folder. sizes: width and height of the references that are to be scored."""
    from lactok.images.pairing import Pairing, PairingError, Unpaired, shared_stems

    how = asked.given.get("pair", "name")
    problems.add("the references", "stems shared by several files", shared_stems(references) if how == "stem" else [])
    for name, root in asked.images.items():
        try:
            pairing = Pairing.of_folder(root, how)
        except PairingError as error:
            problems.lines.append(f"{name}: {error}")
            continue
        missing, found = [], {}
        for reference in references:
            try:
                found[reference] = pairing.find(reference)
            except Unpaired as error:
                missing += [f"{reference} ({error})"] if reference in sizes else []
        extra = sorted(set(pairing.images) - {*found.values(), *pairing.several(references)})
        if asked.given.get("unpaired") == "skip":
            problems.note(name, "references without an image, counted as refused", missing)
            problems.note(name, "images without a reference, left aside", extra)
        else:
            problems.add(name, f"references without an image (pair={how})", missing)
            problems.add(name, f"images without a reference (pair={how})", extra)
        paired = {reference: found[reference] for reference in sizes if reference in found}
        seen = problems.sizes(name, {image: pairing.images[image] for image in paired.values()})
        if asked.given.get("resize") != "true":
            wrong = [
                f"{image} {_shown(seen[image])} of {_shown(sizes[reference])}"
                for reference, image in paired.items()
                if image in seen and seen[image] not in ((side, side), sizes[reference])
            ]
            problems.add(name, f"images of neither their reference's size nor {side} x {side}", wrong)


@dataclass
class Problems:
    """All that is wrong, a line each."""

    lines: list[str] = field(default_factory=list)

    def add(self, where: str, what: str, names: Sequence[str]) -> None:
        """A line on names of one kind, [] for nothing."""
        if names:
            more = f", and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
            self.lines.append(f"{where}: {len(names):,} {what}: {', '.join(names[:LISTED])}{more}")

    def note(self, where: str, what: str, names: Sequence[str]) -> None:
        """The same as a note on stderr: it stops nothing."""
        told = Problems()
        told.add(where, what, names)
        for line in told.lines:
            print(f"note: {line}", file=sys.stderr)

    def sizes(self, where: str, files: Mapping[str, Path], told: bool = True) -> dict[str, tuple[int, int]]:
        """Width and height of each file that is an image; adds a line on those that are not, where told."""
        from lactok.images.decode import ImageError, size_of
        from lactok.progress import Meter

        found, bad = {}, []
        with Meter(len(files), f"sizes of {where}") as meter:
            for name, path in files.items():
                try:
                    found[name] = size_of(path)
                except ImageError as error:
                    bad.append(f"{name} ({error.reason})")
                meter.advance()
        self.add(where, "images that can't be read", bad if told else [])
        return found

    def __str__(self) -> str:
        listed = "".join(f"\n  {line}" for line in self.lines)
        return (
            f"references and images don't fit, nothing was scored:{listed}\nWays out: pair=stem or pair=CSV; "
            "unpaired=skip counts references without an image as refused and leaves other images aside; resize=true "
            "brings images of other sizes to the evaluation size (python -m evals score --help)"
        )


def _protocol_of(sizes: dict[str, tuple[int, int]], folder: str) -> list[str]:
    """The overrides of the protocol at the references' own size. Raises ScoreError where they have several."""
    counts = Counter(sizes.values())
    if not counts:
        return []
    if len(counts) > 1 or len(set(next(iter(counts)))) > 1:
        shown = ", ".join(f"{count:,} of {_shown(size)}" for size, count in counts.most_common(5))
        raise ScoreError(
            f"references={folder} have no one square size ({shown}), so name the size and how they are brought to it: "
            "protocol=native-256 (shorter side to 256, centre crop), paper-1024 (both sides to 1024), or "
            "protocol=native-256 protocol.eval_size=N"
        )
    ((side, _),) = counts
    if side in BY_SIDE:
        return [f"protocol={BY_SIDE[side]}"]
    return [f"protocol={OTHER_SIDE}", f"protocol.eval_size={side}"]


def _rest(asked: Asked) -> list[str]:
    return [*([] if asked.rest_has("calibration") else ["calibration=false"]), *asked.rest]


def _roots(asked: Asked) -> str:
    """The folders as one option of several values, a row each."""
    return f"options.folder.root=[{','.join(_quoted(f'{name}={root}') for name, root in asked.images.items())}]"


def _quoted(text: str) -> str:
    """A value as Hydra takes it, whatever it holds."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
