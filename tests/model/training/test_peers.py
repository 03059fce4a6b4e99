"""What beats tell, with a clock of the test's own."""

import os
import subprocess
import sys

import pytest

from model.training import peers
from model.training.peers import Beat, Peers, has_ended

SILENT, TIMEOUT = 15, 60


def beat(rank, count, **changed):
    return Beat(f"host{rank}", 100 + rank, 0, count)._replace(**changed)


def watch(beats, until, rank=0, size=3):
    """Rank 0 hears beats(rank, second) each second; None: it does not answer -> what is said, by the second."""
    found, said = Peers(rank, size, 0), {}
    for now in range(until):
        for other in range(size):
            if (heard := beats(other, now)) is not None:
                found.hear(other, heard, now)
        for _, sentence in found.news(now, 0, SILENT, TIMEOUT):
            said.setdefault(now, []).append(sentence)
    return found, said


def test_a_silent_rank_is_named_once_and_again_when_it_answers():
    def beats(rank, now):
        return None if rank == 1 and 10 < now < 40 else beat(rank, now, step=min(now, 10) // 2)

    found, said = watch(beats, 60)
    name = "rank 1 on host host1 (process 101)"
    assert said == {
        26: [f"{name} has not answered since step 5. The others wait for it, 60 seconds in all (--timeout)."],
        40: [f"{name} answers again."],
    }
    assert not found.lost(60, TIMEOUT)


def test_ranks_are_lost_longest_silent_first_but_not_those_that_have_left():
    def beats(rank, now):
        last = {0: 99, 1: 9, 2: 5, 3: 1}[rank]
        return beat(rank, now, left=rank == 3) if now <= last else None

    found, said = watch(beats, 30, size=4)
    assert found.lost(30, SILENT) == [2, 1] and found.lost(30, 23) == [2] and not found.lost(30, 25)
    assert [len(sentences) for sentences in said.values()] == [1, 1] and list(said) == [21, 25]


def test_a_rank_that_never_started_is_named():
    _, said = watch(lambda rank, now: beat(rank, now) if rank != 2 else None, 20)
    assert [sentence.partition(".")[0] for sentence in said[16]] == ["rank 2 has not started"]


def test_a_rank_that_has_stepped_but_was_never_heard_is_not_said_not_to_have_started():
    found = Peers(0, 2, 0.0)
    assert found.since(1, 0) == "has not started" and found.since(1, 12) == "has not answered since step 12"


def test_a_rank_that_was_stopped_itself_blames_nobody():
    found, _ = watch(beat, 10)
    assert found.lost(1000, SILENT) == [1, 2]
    found.forget(1000)
    assert not found.lost(1001, SILENT) and not found.news(1001, 0, SILENT, TIMEOUT)


@pytest.mark.parametrize("moves", [False, True])
def test_a_busy_rank_for_which_all_wait_is_named_but_not_lost(moves):
    def beats(rank, now):
        return beat(rank, now, waits=rank != 1, calls=now // 50 if moves else 3, step=7)

    found, said = watch(beats, 400)
    busy = "rank 1 on host host1 (process 101) answers, and has been busy for 2 minutes after step 7; the other ranks"
    assert said == ({} if moves else {peers.BUSY + 1: [busy + " wait for it."]}) and not found.lost(400, SILENT)


def test_keys_are_the_same_on_all_ranks_so_that_one_speaks():
    keys = []
    for rank in (0, 2):
        found = Peers(rank, 3, 0)
        for now in range(30):
            for other in (0, 2) if now > 3 else (0, 1, 2):
                found.hear(other, beat(other, now), now + rank)
            keys += [key for key, _ in found.news(now + rank, 0, SILENT, TIMEOUT)]
    assert len(keys) == 2 and keys[0] == keys[1]


def test_whether_a_process_has_ended():
    assert not has_ended(os.getpid()) and not has_ended(1)
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert has_ended(child.pid)  # a zombie
    child.wait()
    assert has_ended(child.pid)
