"""train.py with a watch that loses its patience within seconds: started by tests/test_ranks.py with torchrun."""

import sys

import train
from data.cli import run_command
from model.training import watch

watch.INTERVAL, watch.SILENT, watch.LATE, watch.GRACE = 0.2, 2.0, 1.5, 1.5

if __name__ == "__main__":
    sys.argv[0] = "train.py"
    run_command("train.py", train.main, train.ModelError, train.Diverged)
