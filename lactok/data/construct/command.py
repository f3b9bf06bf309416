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
    print(f"{spec.out}: {done}; {books['in']:,} items = {books['kept']:,} kept + {sum(books['dropped'].values()):,} dropped")
    for reason, count in sorted(books["dropped"].items(), key=lambda one: -one[1]):
        print(f"  {count:8,} {reason}")
    print(f"{len(manifest['shards']):,} shards, {manifest['bytes'] / 1e6:,.1f} MB")
    return 0
