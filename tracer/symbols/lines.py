"""Source lines and inlined functions for image addresses: the optional extra ``lines`` (the library ``symbolic``).

The library reads untrusted files in native code, builds a whole file's table at once, and may take seconds and hundreds
of megabytes for a large one: so a process of its own does it (tracer.symbols.lines_worker), with bounded memory, CPU
time and patience. It is started for the first file that has lines, and never while tracing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracer.symbols.elf import ElfImage

MAX_FILE = 1 << 30
MAX_MEMORY = 4 << 30
OPEN_SECONDS = 20.0
LOOKUP_SECONDS = 2.0
SESSION_SECONDS = 60.0
MAX_FAILURES = 3

_MAX_ANSWER = 4 << 20
_START_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Location:
    """One function at an address: its name as in the debug information ("" if unknown), source file and line."""

    name: str
    path: str | None
    line: int | None


class LineReader:
    """Looks lines up. No method raises: ``problems`` counts what went wrong, by what it was."""

    def __init__(
        self,
        library: Path,
        *,
        memory: int = MAX_MEMORY,
        patience: float = OPEN_SECONDS,
        budget: float = SESSION_SECONDS,
    ) -> None:
        self.problems: Counter[str] = Counter()
        self._library = library
        self._memory = memory
        self._patience = patience
        self._left = budget
        self._worker: _Worker | None = None
        self._failures = 0
        self._open: dict[int, int] = {}
        self._refused: set[int] = set()

    @classmethod
    def available(cls) -> LineReader | None:
        """A reader, None where ``symbolic`` is not installed."""
        try:
            spec = importlib.util.find_spec("symbolic")
        except (ImportError, ValueError):
            return None
        if spec is None or spec.origin is None or not Path(_WORKER).is_file():
            return None
        return cls(Path(spec.origin).parent.parent)

    def lookup(self, image: ElfImage, address: int) -> tuple[Location, ...]:
        """What is at an address of the image's own address space, innermost first; empty where nothing is known."""
        key = id(image)
        if key in self._refused or self._left <= 0 or self._failures >= MAX_FAILURES:
            return ()
        began = time.monotonic()
        try:
            number = self._number_of(image)
            answer = self._request({"file": number, "address": address - image.base}, None, LOOKUP_SECONDS)
        except _WorkerError as error:
            self._refuse(key, str(error))
            return ()
        finally:
            self._left -= time.monotonic() - began
            if self._left <= 0:
                self.problems["the time for all lines was over"] += 1
        return _locations(answer.get("found"))

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None
        self._open.clear()

    def _refuse(self, key: int, reason: str) -> None:
        self.problems[reason] += 1
        self._refused.add(key)

    def _number_of(self, image: ElfImage) -> int:
        """The worker's number of a file, which it opens if it has not yet; raises _WorkerError."""
        key = id(image)
        if key in self._open:
            return self._open[key]
        if image.fd is None or image.size > MAX_FILE:
            raise _WorkerError("debug information too large")
        number = len(self._open)
        answer = self._request({"open": number}, image.fd, min(self._patience, self._left))
        if "error" in answer:
            raise _WorkerError("debug information damaged or of an unknown kind")
        self._open[key] = number
        return number

    def _request(self, request: dict[str, int], fd: int | None, patience: float) -> dict[str, Any]:
        try:
            if self._worker is None:
                self._worker = _Worker(self._library, self._memory, self._left)
            return self._worker.ask(request, fd, patience)
        except TimeoutError:
            reason = "debug information took too long to read"
        except (OSError, ValueError):
            reason = "the reader of debug information died (out of memory, or a damaged file)"
        # What else was open is opened again when it is asked for.
        self._failures += 1
        self.close()
        raise _WorkerError(reason)


class _WorkerError(Exception):
    """No answer; the text says why."""


_WORKER = str(Path(__file__).with_name("lines_worker.py"))


class _Worker:
    """The process and the socket to it."""

    def __init__(self, library: Path, memory: int, seconds: float) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", _WORKER, str(library), str(memory), str(max(1, round(seconds)))],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={"PATH": os.defpath},
                    cwd="/",
                    start_new_session=True,  # Ctrl-C on the terminal is for memtrace alone
                )
            except OSError:
                ours.close()
                raise
        self._socket = ours
        self._extra = _START_SECONDS

    def ask(self, request: dict[str, int], fd: int | None, patience: float) -> dict[str, Any]:
        """The answer to a request; raises TimeoutError, or OSError or ValueError where the process is gone or mad."""
        deadline = time.monotonic() + patience + self._extra
        self._extra = 0.0
        message = json.dumps(request).encode() + b"\n"
        self._socket.settimeout(patience)
        if fd is None:
            self._socket.sendall(message)
        else:
            socket.send_fds(self._socket, [message], [fd])
        received = b""
        while not received.endswith(b"\n"):
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            chunk = self._socket.recv(1 << 16)
            received += chunk
            if not chunk or len(received) > _MAX_ANSWER:
                raise ValueError("no answer")
        answer = json.loads(received)
        if not isinstance(answer, dict):
            raise ValueError("no answer")
        return answer

    def close(self) -> None:
        """End the process at once."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


def _locations(found: object) -> tuple[Location, ...]:
    """The rows of an answer that are well-formed."""
    rows = found if isinstance(found, list) else []
    locations = []
    for row in rows:
        match row:
            case [str(name), str(path), int(line)]:
                locations.append(Location(name, path or None, line or None))
    return tuple(locations)
