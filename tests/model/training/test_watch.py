"""The watch of a rank, over a store within this process. Runs of several ranks: tests/test_ranks.py."""

import argparse
import io
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from data import DataError, OptionError
from model import ModelError
from model.training import watch
from model.training.distributed import World, parsed
from model.training.peers import Peers
from model.training.state import Diverged
from model.training.store import Store
from model.training.watch import LOST, Watch, status_of

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this PyTorch has no ranks")


@pytest.fixture
def ranks(monkeypatch):
    """Three ranks, of which each has been heard by the others."""
    for name in ("INTERVAL", "SILENT", "LATE", "HELD", "GRACE"):
        monkeypatch.setattr(watch, name, 0.02)
    monkeypatch.setattr(watch, "exit_at_once", lambda status: None)
    monkeypatch.setattr(watch.atexit, "register", lambda *arguments: None)
    monkeypatch.setattr(watch.signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    store = Store(dist.HashStore())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    found = [Watch(store, rank, 3) for rank in range(3)]
    hear(found)
    return found


def hear(ranks):
    for each in ranks:
        each._publish(held=0.0)
    for each in ranks:
        for rank in range(3):
            each._hear(rank)


def ended(rank, error):
    with pytest.raises(BaseException) as found:
        rank.end(error)
    return found.value


def test_an_error_is_raised_by_one_rank_and_ends_the_others_with_its_status(ranks):
    errors = [DataError("a"), DataError("b"), DataError("c")]
    assert ended(ranks[1], errors[1]) is errors[1]
    for rank in (0, 2):
        assert isinstance(end := ended(ranks[rank], errors[rank]), SystemExit) and end.code == 2
    assert ranks[0].stderr.getvalue() == f"{ranks[1].peers.name(1)} ends the run:\n"


def test_a_rank_is_named_though_rank_0_has_taken_the_store_with_it(ranks, monkeypatch):
    def gone(*keys):
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(ranks[1].store, "has", gone)
    error = DataError("b")
    assert ended(ranks[1], error) is error
    assert ranks[0].stderr.getvalue() == f"{ranks[1].peers.name(1)} ends the run:\n"


def test_a_broken_connection_is_explained_by_the_rank_that_has_died(ranks):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    ranks[2].me = ranks[2].me._replace(pid=child.pid)
    ranks[2].step = 1234
    hear(ranks)
    ranks[0].advice = ranks[1].advice = lambda: "Go on."
    broken = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:5"
    for rank in (1, 0):
        assert ended(ranks[rank], RuntimeError(broken)).code == LOST
    name = f"rank 2 on host {ranks[0].me.host} (process {child.pid})"
    assert ranks[0].stderr.getvalue() == f"train.py: {name} has died. It has not answered since step 1,234. Go on.\n"


def test_a_broken_connection_that_no_rank_explains_is_an_error_of_its_own(ranks, monkeypatch):
    monkeypatch.setattr(watch, "LATE", 60)
    monkeypatch.setattr(Watch, "_find_cause", lambda self, seconds: None)
    error = RuntimeError("NCCL error: unhandled cuda error")
    assert ended(ranks[0], error) is error


def test_a_rank_that_dies_in_its_first_second_is_named(ranks, monkeypatch):
    """Before the threads have exchanged any beat: the first is published by start()."""
    monkeypatch.setattr(Watch, "_watch", lambda self: None)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    ranks[2].me = ranks[2].me._replace(pid=child.pid)
    ranks[0].peers = Peers(0, 3, 0.0)
    ranks[2].start()
    assert ranks[0]._dead() == [2] and str(child.pid) in ranks[0].peers.name(2)


def test_a_rank_that_has_left_is_not_taken_for_dead(ranks):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    ranks[2].me = ranks[2].me._replace(pid=child.pid)
    ranks[2]._publish(held=0.0)
    ranks[0]._hear(2)
    assert ranks[0]._dead() == [2]
    ranks[2].leave()  # which rank 0 has not heard yet
    assert ranks[0]._dead() == []


def test_lines_of_standard_error_are_printed_once_and_with_the_name_of_a_rank_that_alone_says_them(ranks):
    for rank in ranks:
        with rank.lines_once():
            print("warning: for all", file=sys.stderr)
            if rank.rank:
                print("warning: not for rank 0", file=sys.stderr)
            print("\r 10 % of a bar", end="", file=sys.stderr)
    for rank in ranks:
        rank.leave()
    printed = ranks[0].stderr.getvalue()
    assert printed == f"warning: for all\n\r 10 % of a bar{ranks[1].peers.name(1)}: warning: not for rank 0\n"


@pytest.mark.parametrize(
    "read, sentence",
    [
        ({"--seed": 1, "corpus": ["a" * 64]}, r"\(--seed: 1, not 0\)\. Give all ranks the same options and files"),
        ({"--seed": 0, "corpus": ["b" * 64]}, r"\(corpus: [0-9a-f]{16}, not [0-9a-f]{16}\)\."),
        ({"--seed": 2, "corpus": []}, r"\(--seed: 2, not 0; corpus: \[\], not [0-9a-f]{16}\)\."),
        ({"--seed": 0, "corpus": ["a" * 64]}, None),
    ],
)
def test_ranks_compare_what_they_have_read(ranks, read, sentence, monkeypatch):
    together, gathered = threading.Barrier(3), [None] * 3

    def gather(world, values):
        gathered[world.rank] = values
        together.wait(10)
        return gathered

    monkeypatch.setattr(World, "barrier", lambda self: None)
    monkeypatch.setattr(World, "gather", gather)
    same = {"--seed": 0, "corpus": ["a" * 64]}

    def compare(rank):
        try:
            World(rank, 3, rank, ranks[rank]).compare(read if rank == 1 else same)
        except OptionError as error:
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(compare, range(3))
    assert others == [first, first]
    if sentence is None:
        assert first is None
    else:
        host = ranks[0].me.host
        assert first.startswith(f"Rank 1 on host {host} and rank 0 on host {host} have read different things (")
        assert re.search(sentence, first)


def test_what_argparse_says_becomes_an_error_that_one_rank_prints(ranks):
    def parse():
        parser = argparse.ArgumentParser()
        parser.add_argument("--steps", type=int)
        return parser.parse_args(["--steps", "x"])

    with pytest.raises(OptionError, match="^argument --steps: invalid int value: 'x'$"):
        parsed(ranks[0], parse)
    assert ranks[0].stderr.getvalue() == "" and parsed(ranks[1], lambda: 5) == parsed(None, lambda: 5) == 5


@pytest.mark.parametrize(
    "error, status",
    [
        *((kind("x"), 2) for kind in (DataError, OptionError, ModelError, OSError, MemoryError)),
        *((RuntimeError("CUDA out of memory"), 2), (RuntimeError("x"), 1), (KeyError("x"), 1), (Diverged("x"), 3)),
        *((KeyboardInterrupt(), 130), (SystemExit(143), 143), (SystemExit(), 0), (SystemExit("x"), 1)),
    ],
)
def test_exit_statuses_are_those_of_run_command(error, status):
    assert status_of(error) == status


def test_the_store_names_its_holder_once_and_its_return_without_blaming_the_ranks(ranks):
    """The holder stops: nobody can be heard, and none of the ranks is lost."""
    for rank in ranks:
        rank.holder = "torchrun on host first"
        rank._store_does_not_answer()
        rank._store_does_not_answer()
    for rank in ranks:
        rank._store_answers()
        assert rank._lost(60.0) is None
    away, back = ranks[0].stderr.getvalue().splitlines()
    assert away.startswith("warning: torchrun on host first has not answered since step 0. The run ends after 300 ")
    assert back == "warning: torchrun on host first answers again."
