"""`python -m lactok.data build`: settings, what is lacking, the build, its report."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from lactok.data.construct.books import BooksDoNotBalance
from lactok.data.construct.cluster import NoCluster, require_ray
from lactok.data.construct.spec import Spec, SpecError, parse
from lactok.data.construct.stages import StageBroken
from lactok.data.folder import DataError
from lactok.files import WriteError
from lactok.registry import RegistryError
from lactok.weights import WeightsError


def build_command(words: Sequence[str]) -> int:
    """The exit status of a build with these settings."""
    try:
        if "--plan" in words or "plan=true" in words:
            return _plan([word for word in words if word not in ("--plan", "plan=true")])
        spec = parse(words)
        require_ray()
        return _build(spec)
    except (SpecError, NoCluster, DataError, WriteError, StageBroken, BooksDoNotBalance) as error:
        print(f"error: {error}", file=sys.stderr)
    except (RegistryError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; finished units are kept, and the same command goes on", file=sys.stderr)
        return 130
    return 2


def _build(spec: Spec) -> int:
    from lactok.data.construct.build import build, finished

    started = time.monotonic()
    stood = finished(spec)
    manifest = stood or build(spec, lambda line: print(line, file=sys.stderr, flush=True))
    books = manifest["books"]
    done = "was finished before" if stood else f"done in {time.monotonic() - started:.0f} s"
    lost = sum(books["dropped"].values())
    print(f"{spec.out}: {done}; {books['in']:,} items = {books['kept']:,} kept + {lost:,} dropped")
    for reason, count in sorted(books["dropped"].items(), key=lambda one: -one[1]):
        print(f"  {count:8,} {reason}")
    print(f"{len(manifest['shards']):,} shards, {manifest['bytes'] / 1e6:,.1f} MB")
    return 0


PLAN_KEYS = ("gpus", "existing", "speeds")


def _plan(words: Sequence[str]) -> int:
    """Prints what a build takes; nothing is read but a report, and nothing runs."""
    from lactok.data.construct.plan import speeds, told

    given: dict[str, str] = {}
    others, own = [], {}
    for word in words:
        key, _, value = word.partition("=")
        if key in PLAN_KEYS:
            own[key] = value
        elif key.startswith("speed."):
            given[key.removeprefix("speed.")] = value
        else:
            others.append(word)
    keys = {word.partition("=")[0] for word in others}
    others += [word for word, key in (("out=.", "out"), ("captions=[plan]", "captions")) if key not in keys]
    spec = parse(others)
    if spec.recipe != "paper":
        raise SpecError(f"--plan with recipe={spec.recipe}: expected recipe=paper, which needs GPUs")
    numbers = {}
    for key, default in (("gpus", 8), ("existing", 0)):
        try:
            numbers[key] = int(own.get(key, default))
        except ValueError:
            raise SpecError(f"{key}={own[key]}: expected a whole number") from None
    known = speeds(given, own.get("speeds", ""))
    print(told(spec, spec.items, numbers["existing"], numbers["gpus"], known))
    return 0
