"""Two processes share the tests, file by file (pyproject.toml); on one thread each, or they would wait for each other.

One test alone, or a debugger: `pytest --numprocesses=0 tests/test_x.py`.
"""

import gc
import logging
import os
import sys

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
# hundreds of processes import these modules: each is compiled once, also where Python is told to keep nothing of it
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

LONG = (
    "test_data_build.py", "test_paper_run.py", "test_ranks.py", "test_gpu_benchmark.py",
    "test_workers.py", "test_check.py",
    "test_resume.py", "test_metric_failures.py", "test_failures.py", "test_miniature_recipes.py",
    "test_conformance_device.py", "test_dry_run.py", "test_train.py", "test_isolation.py", "test_generation.py",
    "test_lactok_training.py", "test_wheel.py", "test_recon.py", "test_refused.py", "test_docs.py", "test_ladd.py",
)  # fmt: skip
"""Files of more than 20 core-seconds: first, so that no process is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


@pytest.fixture(scope="module", autouse=True)
def _what_is_imported_is_collected_no_more():
    """A run collects garbage when its models end: without the libraries' million objects in no time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _at_its_end_python_collects_all():
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _the_log_is_as_a_program_finds_it():
    """`evals.run` takes the package's log for itself (evals/streams.py), also in a module's fixture.

    And a library that configures logging switches the loggers off that are there already.
    """
    logging.disable(logging.NOTSET)
    logger = logging.getLogger("lactok")
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    logger.handlers.clear()
    for name, one in list(logging.root.manager.loggerDict.items()):
        if name.startswith("lactok") and isinstance(one, logging.Logger):
            one.disabled = False
