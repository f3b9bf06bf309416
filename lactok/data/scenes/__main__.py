"""`python -m lactok.data.scenes out=DIR count=N [seed=S] [size=128] [split=train] [style=varied]`."""

from __future__ import annotations

import sys

USAGE = """usage: python -m lactok.data.scenes out=DIR count=N [seed=0] [size=128] [split=train] [style=varied]

Writes N scenes of coloured shapes with captions into DIR: 000000.png ... and captions.jsonl.

  out    a folder that does not exist yet, or an empty one
  count  how many scenes, at least 1
  seed   of the stream, at least 0
  size   pixels: a side, or HEIGHTxWIDTH
  split  train: no held-out combination; held_out: one in every scene that has combinations; all: either
  style  varied: every background, objects of many sizes; plain: flat light backgrounds, large objects at fixed places;
         loose: as plain, in many shades, with random shapes among the classes: for training generators
"""
KEYS = ("out", "count", "seed", "size", "split", "style")


class UsageError(Exception):
    """Wrong arguments; the message says what was found and what is expected."""


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 2 wrong settings or a folder that can't be used, 130 stopped by Ctrl-C."""
    if not arguments or {"--help", "-h"} & set(arguments):
        print(USAGE)
        return 0 if arguments else 2
    from lactok.data.folder import DataError
    from lactok.data.scenes.combinations import Split
    from lactok.data.scenes.folder import write_folder
    from lactok.data.scenes.vocabulary import Style
    from lactok.files import WriteError
    from lactok.progress import Meter

    try:
        given = _given(arguments)
        count, seed, size = _integer(given, "count"), _integer(given, "seed", 0), _size(given.get("size", "128"))
        split = given.get("split", Split.TRAIN)
        if split not in list(Split):
            raise UsageError(f"split={split}: expected {', '.join(Split)}")
        style = given.get("style", Style.VARIED)
        if style not in list(Style):
            raise UsageError(f"style={style}: expected {', '.join(Style)}")
        with Meter(count, "drawing scenes", "scene") as meter:
            folder = write_folder(given["out"], count, seed, size, Split(split), meter.at, Style(style))
    except (DataError, UsageError, ValueError, WriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing is left of it", file=sys.stderr)
        return 130
    print(f"done: {count} scenes in {folder}")
    return 0


def _given(arguments: list[str]) -> dict[str, str]:
    given = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in KEYS:
            raise UsageError(f"{argument!r}: expected KEY=VALUE, KEY one of {', '.join(KEYS)}")
        given[key] = value
    for key in ("out", "count"):
        if not given.get(key):
            raise UsageError(f"{key} is missing: python -m lactok.data.scenes out=DIR count=N")
    return given


def _integer(given: dict[str, str], key: str, default: int | None = None) -> int:
    value = given.get(key, str(default))
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"{key}={value}: expected an integer") from None


def _size(value: str) -> int | tuple[int, int]:
    sides = value.split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise UsageError(f"size={value}: expected pixels of a side, as 128, or HEIGHTxWIDTH, as 160x240")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


if __name__ == "__main__":
    from lactok.pipes import run_command

    sys.exit(run_command(main))
