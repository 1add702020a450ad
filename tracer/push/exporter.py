"""Where metrics go: served over HTTP on an address, or kept in a file for node_exporter's textfile collector."""

from __future__ import annotations

import os
import re
import socket
import socketserver
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tracer.errors import UsageError
from tracer.model.live import LiveState
from tracer.push.metrics import LiveMetrics, registry_of

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_ADDRESS = re.compile(r"(?:(?P<host>\[[^\]\s]+\]|[^\s:/\[\]]*):)?(?P<port>\d{1,5})")
_HTTP_TIMEOUT = 5.0
_POLL_SECONDS = 0.05
_EXAMPLE = "for instance: --metrics localhost:9185, or --metrics /var/lib/prometheus/node-exporter/memtrace.prom"


@dataclass(frozen=True, slots=True)
class Address:
    """Where to serve metrics; ``host`` is a name or an IP address, without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class Exporter(Protocol):
    """Where metrics go."""

    def start(self) -> None:
        """Raises UsageError where they cannot go there."""

    def update(self, state: LiveState) -> None:
        """Take over a new state."""

    def close(self) -> None:
        """Take the metrics away."""


def parse_place(text: str) -> Address | Path:
    """``[HOST]:PORT`` or ``PORT``, by default on localhost; anything else is a file, whose name ends in ``.prom``.

    node_exporter reads no other files, and nothing else is replaced by a slip of the hand. Raises UsageError.
    """
    address = _ADDRESS.fullmatch(text)
    if address is not None:
        port = int(address["port"])
        if port > 65535:
            raise UsageError(f"--metrics: there is no port {port}", _EXAMPLE)
        return Address((address["host"] or "localhost").strip("[]"), port)
    path = Path(text)
    if path.suffix != ".prom":
        raise UsageError(f"--metrics: {text} is neither an address nor a file that ends in .prom", _EXAMPLE)
    if path.exists() and not path.is_file():
        raise UsageError(f"--metrics: {text} is no regular file", _EXAMPLE)
    return path


def open_exporter(place: Address | Path, say: Callable[[str], None]) -> Exporter:
    """Raises MissingDependencyError where the library for metrics is not installed."""
    metrics = LiveMetrics()
    registry = registry_of(metrics)
    return _Server(place, metrics, registry) if isinstance(place, Address) else _File(place, metrics, registry, say)


class _Server:
    """Serves the metrics over HTTP, under any path, from threads of its own."""

    def __init__(self, address: Address, metrics: LiveMetrics, registry: CollectorRegistry) -> None:
        self._address = address
        self._registry = registry
        self._http: ThreadingHTTPServer | None = None
        self.update = metrics.update

    def start(self) -> None:
        """Raises UsageError where the address cannot be served."""
        from prometheus_client import MetricsHandler

        # A client that sends nothing must not hold a thread for ever.
        handler = type("_Handler", (MetricsHandler.factory(self._registry),), {"timeout": _HTTP_TIMEOUT})
        try:
            found = socket.getaddrinfo(self._address.host, self._address.port, type=socket.SOCK_STREAM)
            family, _, _, _, place = min(found, key=lambda each: each[0] != socket.AF_INET)
            server = type("_Http", (_QuietServer,), {"address_family": family})
            self._http = server(place[:2], handler)
        except OSError as error:
            raise UsageError(
                f"--metrics: {self._address} cannot be served: {error.strerror}", "choose another address"
            ) from None
        threading.Thread(target=self._http.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens: of interest when it was asked for port 0."""
        assert self._http is not None
        return int(self._http.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()


class _QuietServer(ThreadingHTTPServer):
    """A client that goes away in mid-answer is no event to tell of."""

    def server_bind(self) -> None:
        # The one of http.server asks for the host's full name, which can take as long as a name server is silent.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None: ...


class _File:
    """Keeps the metrics in a file that is complete at any time, and takes it away at the end."""

    def __init__(
        self, path: Path, metrics: LiveMetrics, registry: CollectorRegistry, say: Callable[[str], None]
    ) -> None:
        self._path = path
        self._metrics = metrics
        self._registry = registry
        self._say = say
        self._is_failing = False

    def start(self) -> None:
        """Raises UsageError where the file cannot be written."""
        try:
            self._write()
        except OSError as error:
            raise UsageError(
                f"--metrics: {self._path} cannot be written: {error.strerror}", "choose another place"
            ) from None

    def update(self, state: LiveState) -> None:
        """Write the metrics of this state; that it fails is said once, and costs nothing else."""
        self._metrics.update(state)
        try:
            self._write()
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                self._say(f"metrics: {self._path} cannot be written: {error.strerror}")
            self._is_failing = True

    def _write(self) -> None:
        from prometheus_client import generate_latest

        # A name that nobody can guess: the directory may belong to someone else.
        descriptor, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o644)  # node_exporter runs as another user
                file.write(generate_latest(self._registry))
            os.replace(name, self._path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise

    def close(self) -> None:
        """Remove the file: what it says is true no longer."""
        with suppress(OSError):
            self._path.unlink()
