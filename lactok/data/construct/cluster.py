"""Ray: started on this machine, or joined by address; what it is told; what is said where it isn't installed."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lactok.data.construct.spec import Spec, Stage

EXTRA = "Ray is not installed, which `python -m lactok.data build` runs on: pip install 'lactok[cluster]'"


class NoCluster(Exception):
    """Ray can't be had; the message says why and what to do."""


def require_ray() -> None:
    """Raises NoCluster, naming the extra, where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise NoCluster(EXTRA)


@contextlib.contextmanager
def connected(spec: Spec) -> Iterator[Any]:
    """Ray's module, connected to the cluster at spec.address, or to one that lives as long as the context.

    Raises NoCluster.
    """
    require_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    here: dict[str, Any] = {"include_dashboard": False, "_temp_dir": str(_short_folder())}
    if spec.cpus:
        here["num_cpus"] = spec.cpus
    if spec.store:
        here["object_store_memory"] = spec.store * 2**20
    owned = not ray.is_initialized()
    try:
        if owned:
            ray.init(
                address=spec.address or "local",
                logging_level="error",
                log_to_driver=False,
                configure_logging=True,
                **({} if spec.address else here),
            )
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        where = f"no Ray cluster at address={spec.address}" if spec.address else "Ray can't be started here"
        raise NoCluster(f"{where}: {error}; start one by `ray start --head` and give its HOST:PORT") from error
    try:
        _quiet()
        yield ray
    finally:
        if owned:
            ray.shutdown()


def _quiet() -> None:
    """Ray Data's own bars and lines make room for the live view; its log is in Ray's folder."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _short_folder() -> Path:
    """Ray puts sockets there, whose paths may have 107 bytes."""
    base = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    return (base if len(str(base)) < 40 else Path("/tmp")) / f"ray-{os.getuid()}"


def pool(stage: Stage) -> dict[str, Any]:
    """How Ray runs a stage: arguments of map_batches. Ray Data starts an actor that dies again, and does its units
    again, any number of times."""
    from ray.data import ActorPoolStrategy

    least, most = stage.actors
    return {
        "compute": ActorPoolStrategy(min_size=least, max_size=most),
        "num_cpus": stage.cpus,
        **({"num_gpus": stage.gpus} if stage.gpus else {}),
        "batch_size": 1,
    }


@contextlib.contextmanager
def unwrapped(*kinds: type[Exception]) -> Iterator[None]:
    """Raises an error of these kinds that a process of Ray met as itself, without Ray's wrapping."""
    import ray.exceptions

    try:
        yield
    except kinds as error:
        if not isinstance(error, ray.exceptions.RayError):
            raise
        raise _theirs(error, kinds) or error from error  # Ray's own class, made of theirs
    except Exception as error:
        if found := _theirs(error, kinds):
            raise found from error
        if not isinstance(error, ray.exceptions.RayError):
            raise
        raise NoCluster(f"Ray gave up: {_message(error)}; finished units are kept, the same command goes on") from error


def _theirs(error: BaseException, kinds: Sequence[type[Exception]]) -> Exception | None:
    """The error of one of these kinds that stands behind Ray's: among its causes, or in the trace that is its text."""
    import ray.exceptions

    waiting: list[BaseException] = [error]
    seen: list[BaseException] = []
    while waiting:
        one = waiting.pop(0)
        if any(one is other for other in seen):
            continue
        own = isinstance(one, tuple(kinds)) and not isinstance(one, ray.exceptions.RayError)
        if own and isinstance(one, Exception):
            return one
        seen.append(one)
        inner = (getattr(one, "cause", None), one.__cause__, one.__context__)
        waiting += [other for other in inner if isinstance(other, BaseException)]
    for one in seen:
        for kind in kinds:
            if match := re.search(rf"^(?:[\w.]+\.)?{kind.__name__}: (.+)$", str(one), re.M):
                return kind(match[1])
    return None


def _message(error: BaseException) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^[\w.]+: ", "", lines[-1]) if lines else type(error).__name__
