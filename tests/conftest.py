"""What all tests start from, however pytest was started."""

import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes with two threads each would stand in each other's way
    os.environ["OMP_NUM_THREADS"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
