"""One way to write settings on all command lines, key=value; the commands' former --key value stays."""

from __future__ import annotations

from collections.abc import Sequence


def as_options(
    argv: Sequence[str], keys: Sequence[str] = (), lists: Sequence[str] = (), flags: Sequence[str] = ()
) -> list[str]:
    """The words as argparse takes them: `out=DIR` as `--out=DIR`, `row=a,b` or `row=[a,b]` as `--row a b`, `all=true`
    as `--all`. keys, lists, flags: the keys that take a value, several, or true and false; other words stay.

    Options that take several values come last, behind the words that stand alone.
    """
    words, behind = [], []
    for word in argv:
        key, equals, value = word.partition("=")
        if equals and key in keys:
            words.append(f"--{key}={value}")
        elif equals and key in lists:
            behind += [f"--{key}", *listed(value)]
        elif equals and key in flags and value in ("true", "false"):
            words += [f"--{key}"] if value == "true" else []
        else:
            words.append(word)
    return [*words, *behind]


def listed(text: str) -> list[str]:
    """`a,b` or `[a,b]` as names; a comma within brackets is a name's own (`downsample-bits[bits=288]`)."""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    names, depth = [""], 0
    for letter in text:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and depth <= 0:
            names.append("")
        else:
            names[-1] += letter
    return [name.strip() for name in names if name.strip()]
