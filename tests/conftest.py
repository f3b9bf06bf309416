"""Two processes share the tests, file by file (pyproject.toml); on one thread each, or they would wait for each other.

One test alone, or a debugger: `pytest --numprocesses=0 tests/test_x.py`.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
