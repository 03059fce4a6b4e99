"""Iteration one item ahead: the same items, one in work at a time, errors in their place, no thread left behind."""

import threading

import pytest

from eval.tasks.ahead import ahead


def test_the_next_item_is_made_meanwhile_and_no_further_one():
    made = [threading.Event() for _ in range(5)]

    def items():
        for i, event in enumerate(made):
            event.set()
            yield i

    seen = []
    for i in ahead(items()):
        seen.append(i)
        if i < 4:
            assert made[i + 1].wait(5)  # while this one is in hand
        assert not any(event.wait(0.01) for event in made[i + 2 :])
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), RuntimeError("also")], ids=repr)
def test_an_error_comes_after_the_items_before_it(error):
    def items():
        yield 1
        yield 2
        raise error

    seen = []
    with pytest.raises(type(error)):
        for i in ahead(items()):
            seen.append(i)
    assert seen == [1, 2]


def test_nothing_and_a_caller_that_stops():
    before = set(threading.enumerate())  # other tests' threads, too, which may stay
    assert list(ahead([])) == []
    for i in ahead(range(10**9)):
        if i == 3:
            break
    own = set(threading.enumerate()) - before
    for thread in own:
        thread.join(5)
    assert not any(thread.is_alive() for thread in own)
