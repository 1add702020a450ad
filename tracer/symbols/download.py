"""One GET into a file, in a thread of its own: neither a name server nor one byte a second can hold its caller up."""

from __future__ import annotations

import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO

from tracer.symbols.debugstore import Writer
from tracer.web import web_opener

NOT_FOUND, SLOW = "not found", "too slow"

_CHUNK = 256 << 10


class Transfer:
    """The GET and how it stands: after ``done`` or ``stop``, ``problem`` says what went wrong (None: nothing).

    ``received`` counts bytes; ``unreachable`` tells that the server need not be asked again.
    """

    def __init__(self, url: str, max_file: int, timeout: float) -> None:
        self.done = threading.Event()
        self.problem: str | None = None
        self.unreachable = False
        self.received = 0
        self._url, self._max_file, self._timeout = url, max_file, timeout
        self._stopped = False
        self._lock = threading.Lock()

    def start(self, writer: Writer) -> None:
        """Begin; the thread does not keep the process alive."""
        threading.Thread(target=self._run, args=(writer,), name="debuginfod", daemon=True).start()

    def stop(self) -> None:
        """Nothing is written after this; what is not done by now was too slow."""
        with self._lock:
            self._stopped = True
            if not self.done.is_set():
                self.problem, self.unreachable = SLOW, True

    def _run(self, writer: Writer) -> None:
        problem, unreachable = None, False
        try:
            self._get(writer)
        except urllib.error.HTTPError as error:
            error.close()
            problem = NOT_FOUND if error.code == 404 else f"HTTP status {error.code}"
        except TimeoutError:
            problem, unreachable = SLOW, True
        except urllib.error.URLError as error:
            slow = isinstance(error.reason, TimeoutError)
            problem, unreachable = SLOW if slow else "cannot connect", True
        except (http.client.HTTPException, OSError, ValueError) as error:
            problem = str(error) if isinstance(error, _RefusedError) else "broken answer"
        with self._lock:
            if not self._stopped:
                self.problem, self.unreachable = problem, unreachable
                self.done.set()

    def _get(self, writer: Writer) -> None:
        request = urllib.request.Request(self._url, headers={"User-Agent": "memtrace", "Accept-Encoding": "identity"})
        with web_opener(redirects=True).open(request, timeout=self._timeout) as response:
            expected = response.headers.get("Content-Length", "")
            if expected.isdecimal() and int(expected[:20]) > self._max_file:
                raise _RefusedError("larger than allowed")
            for chunk in _chunks(response):
                self._keep(writer, chunk)
        if expected.isdecimal() and self.received != int(expected[:20]):
            raise _RefusedError("truncated")

    def _keep(self, writer: Writer, chunk: bytes) -> None:
        if not self.received and chunk[:4] != b"\x7fELF"[: len(chunk)]:
            raise _RefusedError("not an ELF file")
        if self.received + len(chunk) > self._max_file:
            raise _RefusedError("larger than allowed")
        with self._lock:
            if self._stopped:
                raise _RefusedError("stopped")
            writer.write(chunk)
            self.received += len(chunk)


class _RefusedError(ValueError):
    """The answer is not taken; the text says why."""


def _chunks(response: IO[bytes]) -> Iterator[bytes]:
    # read1 returns what has come: read would wait for a whole chunk from a server that sends a byte at a time.
    read = getattr(response, "read1", response.read)
    while chunk := read(_CHUNK):
        yield chunk
