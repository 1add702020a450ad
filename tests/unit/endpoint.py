"""A server that takes profiles as Pyroscope does, and answers as a test says."""

from __future__ import annotations

import email.parser
import email.policy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    query: dict[str, str]
    headers: Message
    body: bytes

    @property
    def form(self) -> dict[str, bytes]:
        """The form's files by field, read by the standard library's parser of MIME."""
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + self.body)
        assert message.is_multipart()
        fields = {}
        for part in message.iter_parts():
            content = part.get_payload(decode=True)
            assert part.get_filename() and isinstance(content, bytes)
            fields[str(part.get_param("name", header="content-disposition"))] = content
        return fields


@dataclass
class FakeServer:
    """What came, and what is answered: the next of ``statuses``, then 200. ``silent`` answers nothing at all."""

    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    silent: bool = False
    url: str = ""
    changed: threading.Condition = field(default_factory=threading.Condition)
    released: threading.Event = field(default_factory=threading.Event)

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.requests) >= count, 20), f"no {count} requests"

    def take(self, request: Request) -> int:
        with self.changed:
            self.requests.append(request)
            self.changed.notify_all()
            return self.statuses.pop(0) if self.statuses else 200


@contextmanager
def fake_server(**settings: Any) -> Iterator[FakeServer]:
    state = FakeServer(**settings)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            status = state.take(Request(parts.path, query, self.headers, body))
            if state.silent:
                state.released.wait(20)
                return
            self.send_response(status)
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"go \x1b[31maway" if status >= 300 else b"")

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
