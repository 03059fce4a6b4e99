"""Settings for all tests, however pytest was started."""

import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:  # else two workers with two threads each would compete for the cores
    os.environ["OMP_NUM_THREADS"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a process that a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
