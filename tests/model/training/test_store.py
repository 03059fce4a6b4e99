"""The connection to the store through which ranks meet."""

import threading
from types import SimpleNamespace

import pytest

from model.training import store


def test_a_store_that_does_not_answer_is_an_error_within_seconds(monkeypatch):
    """TCPStore waits for ever for a host that is gone."""
    gone, late = threading.Event(), SimpleNamespace(check=lambda keys: gone.wait(), add=lambda key, number: number)
    monkeypatch.setattr(store, "ANSWER", 0.05)
    asked = store.Store(late)
    assert asked.is_first("key")
    with pytest.raises(RuntimeError, match="does not answer"):
        asked.has("key")
    gone.set()
    assert asked.has("key")
