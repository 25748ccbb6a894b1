"""A server in a thread of the test: it answers JSON with JSON, or behaves as servers should not."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


JUNK: list[Any] = [None, "x", -1, 1e400, True, [], [None], {"a": 1}, "\ud800"]


def with_junk(answer: Any) -> Iterator[Any]:
    """The answer, each time with something else in the place of one of its parts."""
    for name, part in answer.items() if isinstance(answer, dict) else enumerate(answer):
        for other in [*JUNK, *(with_junk(part) if isinstance(part, dict | list) else ())]:
            changed = copy.copy(answer)
            changed[name] = other
            yield changed


class JsonServer(ThreadingHTTPServer):
    """Answers each request by `reply`, unless `plan` says otherwise.

    An action of `plan` is taken by one request: a status to fail with, `"hang up"`, `"stall"`, `"trickle"` (a byte now
    and then, without end), `"no json"`, `"too deep"` (lists in lists), or a dictionary that is laid over the reply.

    Attributes:
        bodies (`list[dict]`):
            Bodies of the requests.
        plan (`list`):
            What the next requests get.
        most_open (`int`):
            Most requests at a time.
        delay (`float`):
            Seconds before each answer.
        says (`str`):
            What it says with a status to fail with.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.plan: list[Any] = []
        self.open = self.most_open = 0
        self.delay = 0.0
        self.says = "told to fail"

    @property
    def url(self) -> str:
        """Address with its version."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer to one request, whose body is empty where it only asks."""
        raise NotImplementedError

    def refusal(self, body: dict[str, Any]) -> str | None:
        """Why a request is refused, if it is."""
        return None


class _Handler(BaseHTTPRequestHandler):
    server: JsonServer

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        with server.lock:
            server.bodies.append(body)
            server.open += 1
            server.most_open = max(server.most_open, server.open)
            action = server.plan.pop(0) if server.plan else {}
        try:
            time.sleep(server.delay)
            self.act(action, body)
        except OSError:
            pass  # the client has gone
        finally:
            with server.lock:
                server.open -= 1

    def act(self, action: Any, body: dict[str, Any]) -> None:
        if isinstance(action, int):
            self.answer(action, json.dumps({"error": {"message": self.server.says}}).encode())
        elif action == "hang up":
            self.connection.close()
        elif action == "stall":
            time.sleep(3)
        elif action == "trickle":
            self.head(200, 10**6)
            for _ in range(100):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)
        elif action == "no json":
            self.answer(200, b"<html>welcome</html>")
        elif action == "too deep":
            self.answer(200, b"[" * 200_000)
        elif (why := self.server.refusal(body)) is not None:
            self.answer(400, json.dumps({"error": {"message": why}}).encode())
        else:
            self.answer(200, json.dumps({**self.server.reply(body), **action}).encode())

    def head(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def answer(self, status: int, data: bytes) -> None:
        self.head(status, len(data))
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def running(server: JsonServer) -> Iterator[Any]:
    """Run a server until the end of the block."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
