"""Two processes share the tests, file by file (pyproject.toml); on one thread each, or they would wait for each other.

One test alone, or a debugger: `pytest --numprocesses=0 tests/test_x.py`.
"""

import gc
import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported


@pytest.fixture(scope="module", autouse=True)
def _what_is_imported_is_collected_no_more():
    """A run collects garbage when its models end: without the libraries' million objects in no time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _at_its_end_python_collects_all():
    yield
    gc.unfreeze()
