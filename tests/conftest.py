"""One thread for each of pytest's processes: two of them with two threads each would stand in each other's way."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
