"""The fake hub as a fixture."""

import threading
from http.server import ThreadingHTTPServer

import pytest

from data.download import hub, transfer
from tests.data.download.fake_hub import FakeHub, Handler


@pytest.fixture(scope="module")
def servers():
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    for server, name in zip(servers, ("hub", "cdn")):
        server.name, server.daemon_threads = name, True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def fake(servers, monkeypatch, tmp_path):
    fake = FakeHub()
    for server in servers:
        server.fake = fake
    fake.hub, fake.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    monkeypatch.setenv("HF_ENDPOINT", fake.hub + "/")
    monkeypatch.setenv("no_proxy", "*")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISTILCAMEMBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "PAUSE", 0.0)
    monkeypatch.setattr(transfer, "TIMEOUT", 5.0)
    monkeypatch.setattr(transfer, "CHUNK", 1 << 14)
    yield fake
    fake.release.set()
