"""A server in a process of its own, as tests talk to it: over HTTP, or byte by byte."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

JSON = {"content-type": "application/json"}
_NOW = int(time.time())
HEAD = b"POST /v1/%s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


class Said(NamedTuple):
    """The status and what was said."""

    status: int
    body: Any


class Server:
    """`hiertcn serve` with the options given, on a port of its own."""

    PROGRAM = "from hiertcn.cli import main; main()"

    def __init__(self, run: Path, *options: Any) -> None:
        command = [sys.executable, "-c", self.PROGRAM, "serve", run, "--port", 0, *options]
        self.process = subprocess.Popen(
            list(map(str, command)), stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert self.process.stderr is not None
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+) serves", line):
                self.port = int(found[1])
                return
        raise AssertionError("".join(lines))

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Said:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, data, {**(JSON if body is not None else {}), **headers})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        return Said(answer.status, json.loads(text) if text[:1] == b"{" else text)

    def post(self, path: str, body: Any, **headers: str) -> Said:
        return self.ask("POST", path, body, **headers)

    def open(self, data: bytes = b"") -> socket.socket:
        opened = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        opened.sendall(data)
        return opened

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        if self.process.stderr is not None:
            self.process.stderr.close()


def event(user: str, item: str, name: str = "e") -> dict[str, Any]:
    return {"event_id": name, "user_id": user, "item_id": item, "time": _NOW}


def is_answered(server: Server) -> bool:
    return server.post("/v1/recommend", {"user_id": "u"}).status == 200
