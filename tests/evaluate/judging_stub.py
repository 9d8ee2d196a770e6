"""An endpoint that speaks the OpenAI protocol on this machine, and misbehaves as told."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test-0123456789abcdef"


@dataclass
class Http:
    """A reply with a status of its own."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": {"message": "as told"}}'


@dataclass
class Torn:
    """A reply that ends in the middle: half of what ``Content-Length`` promises, then the connection is closed."""


@dataclass
class Slow:
    """A reply that comes after ``seconds``."""

    seconds: float


Answer = Callable[[str, int], Any]  # (the user's question, how often it was asked before) → text, or one of the above


class Stub:
    """``asked`` holds (question, headers, body) of every request in order of arrival."""

    def __init__(self, answer: Answer, usage: dict[str, int] | None) -> None:
        self.answer, self.usage = answer, usage
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.lock = threading.Lock()
        self.url = ""

    def reply(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        question = body["messages"][1]["content"]
        with self.lock:
            before = sum(q == question for q, _, _ in self.asked)
            self.asked.append((question, dict(handler.headers), body))
        found = self.answer(question, before)
        if isinstance(found, Slow):
            time.sleep(found.seconds)
            found = "A"
        if isinstance(found, str):
            message = {"choices": [{"message": {"content": found}, "finish_reason": "stop"}]}
            found = Http(200, body=json.dumps(message | ({"usage": self.usage} if self.usage else {})).encode())
        if isinstance(found, Torn):
            handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{"choices": [{"mess')
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.send_response(found.status)
        for name, value in {"Content-Length": str(len(found.body)), **found.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(found.body)


@contextmanager
def serving(answer: Answer, usage: dict[str, int] | None = None) -> Iterator[Stub]:
    stub = Stub(answer, usage)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            with suppress(BrokenPipeError, ConnectionResetError):
                stub.reply(self)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()


def shown(question: str) -> tuple[str, str]:
    """The answers A and B of a question."""
    a, b = (re.search(rf"<answer_{x}>\n(.*?)\n</answer_{x}>", question, flags=re.DOTALL) for x in "AB")
    assert a is not None
    assert b is not None
    return a[1], b[1]


def longer(question: str, before: int = 0) -> str:
    """A judge that prefers the longer answer, wherever it stands."""
    a, b = shown(question)
    return "A" if len(a) > len(b) else "B"
