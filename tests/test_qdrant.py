"""The vector server: what its collections are named and marked, how it is spoken to, and what becomes of faults."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient

from hiertcn.errors import StorageError
from hiertcn.retrieval import _server, open_index
from hiertcn.retrieval.qdrant import API_KEY, QdrantIndex
from indexes import asked, learned_vectors

VECTORS = learned_vectors(30, 4)
QUERIES = asked(VECTORS, 2)


def rows(*listed: int) -> np.ndarray:
    return np.array(listed, dtype=np.int64)


def test_a_folder_is_filled_once_and_anew_after_it_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, filled = f"qdrant:///{tmp_path / 'q'}", []
    plain = QdrantIndex._fill
    monkeypatch.setattr(QdrantIndex, "_fill", lambda self, vectors: filled.append(1) or plain(self, vectors))
    with open_index(url, VECTORS) as index:
        best = index.search(QUERIES, 5)[0]
    with open_index(url, VECTORS) as index:
        np.testing.assert_array_equal(index.search(QUERIES, 5)[0], best)
        assert len(filled) == 1
        index.put(rows(99), 50 * QUERIES[:1])
        index.remove(rows(int(best[0, 0])))
    with open_index(url, VECTORS) as index:
        np.testing.assert_array_equal(index.search(QUERIES, 5)[0], best)
        assert (len(filled), len(index)) == (2, 30)
    with open_index(url, VECTORS[:20]) as index:
        assert (len(filled), len(index)) == (3, 19)
    client = QdrantClient(path=str(tmp_path / "q"))
    names = sorted(found.name for found in client.get_collections().collections)
    assert len(names) == 2
    assert all(name.startswith("hiertcn-") for name in names)
    points, _ = client.scroll(names[0], limit=100)
    assert not any(point.payload for point in points)
    client.close()


def test_a_filling_that_was_cut_short_is_not_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"qdrant:///{tmp_path / 'q'}"
    with monkeypatch.context() as patch:
        patch.setattr(QdrantIndex, "_upsert", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            open_index(url, VECTORS)
    with open_index(url, VECTORS) as index:
        assert 0 not in index.search(QUERIES, 29)[0]


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("qdrant://localhost", "http://localhost:6333"),
        ("qdrant://127.0.0.1:7000", "http://127.0.0.1:7000"),
        ("qdrants://vectors.example:443", "https://vectors.example:443"),
        ("qdrants://[::1]:7000/", "https://[::1]:7000"),
    ],
)
def test_an_address_says_whether_by_tls(url: str, where: str) -> None:
    assert _server(url) == {"url": where}


@contextmanager
def serving(wait: float = 0.0, status: int = 200) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A server that answers every request in the same way; its address, and what was asked with which key."""
    asked_for: list[tuple[str, str | None]] = []
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked_for.append((f"{self.command} {self.path}", self.headers.get("api-key")))
            over.wait(wait)
            self.rfile.read(int(self.headers.get("content-length", 0)))
            result: object = {"aliases": []} if self.command == "GET" else True
            if self.path.endswith("/points?wait=true"):
                result = {"operation_id": 0, "status": "completed"}
            body = json.dumps({"result": result, "status": "ok", "time": 0})
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", asked_for
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_server_that_refuses_or_is_slow_is_told_within_the_deadline() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StorageError, match="did not do what it was asked") as caught:
            QdrantIndex(VECTORS, {"url": nobody}, deadline=0.2)
        assert nobody in str(caught.value)
    for status in (401, 500):
        with serving(status=status) as (at, _), pytest.raises(StorageError, match=API_KEY):
            open_index(f"qdrant://{at}", VECTORS)
    with serving(wait=20) as (at, _):
        begun = time.monotonic()
        with pytest.raises(StorageError, match="time"):
            QdrantIndex(VECTORS, {"url": f"http://{at}"}, deadline=0.2)
        assert time.monotonic() - begun < 5


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, "the-secret")
    with serving() as (at, asked_for):
        with pytest.warns(UserWarning, match="insecure"):
            index = open_index(f"qdrant://{at}", VECTORS)
        assert {key for _, key in asked_for} == {"the-secret"}
        assert "the-secret" not in str(index.facts())
        index.close()


def test_a_server_that_goes_away_is_told_and_what_was_removed_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_index("qdrant:memory", VECTORS) as index:
        assert isinstance(index, QdrantIndex)
        best = int(index.search(QUERIES[:1], 1)[0][0, 0])
        with monkeypatch.context() as patch:
            patch.setattr(index._client, "delete", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("gone")))
            with pytest.raises(StorageError, match="gone"):
                index.remove(rows(best))
        assert best not in index.search(QUERIES, 30)[0]
        assert len(index) == 29
