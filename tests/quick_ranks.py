"""Ranks of train.py for tests/test_ranks.py, started with torchrun: their watch loses its patience within seconds.

torchrun … tests/quick_ranks.py 0 OPTIONS…
torchrun … tests/quick_ranks.py 3 RANK OPTION VALUE OPTIONS…    one rank alone is given this option
torchrun … tests/quick_ranks.py 2 RANK ERROR OPTIONS…           one rank alone meets this error, in its tenth step
"""

import os
import sys
from unittest import mock

import train
from data.cli import run_command
from model.training import watch

watch.INTERVAL, watch.SILENT, watch.LATE, watch.HELD, watch.GRACE = 0.2, 2.0, 1.5, 3.0, 1.5


def main():
    number = int(sys.argv[1])
    only, options = sys.argv[2 : 2 + number], sys.argv[2 + number :]
    sys.argv = ["train.py", *options]
    if not only or only[0] != os.environ["RANK"]:
        return train.main()
    if number == 3:
        sys.argv += only[1:]
        return train.main()
    errors, steps = [RuntimeError(only[1])], train.optimiser_step

    def fail(*arguments):
        fail.calls += 1
        if fail.calls == 10:
            raise errors[0]
        return steps(*arguments)

    fail.calls = 0
    with mock.patch.object(train, "optimiser_step", fail):
        return train.main()


if __name__ == "__main__":
    run_command("train.py", main, train.ModelError, train.Diverged)
