"""memtrace on a terminal of its own, as a person runs it: a pty whose other end the test holds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from tests.bpf.harness import DEADLINE, ROOT, HarnessError, memtrace_command

ALTERNATE_SCREEN, NORMAL_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"
HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"
_CONTROL = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[()][0-9A-B]|\x1b[=>]|\r")


class Terminal:
    """`memtrace ARGUMENTS...` as the leader of a session whose terminal (80 x 24) is ours; use as a context manager."""

    def __init__(
        self,
        *arguments: str,
        columns: int = 80,
        lines: int = 24,
        env: Mapping[str, str] | None = None,
        deadline: float = DEADLINE,
    ) -> None:
        self.output = b""
        self.deadline = deadline
        self._master, slave = pty.openpty()
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.settings_before = self.settings()
        # setsid executes the command in its own process, so the pid is memtrace's.
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *memtrace_command(), *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", **(env or {})},
        )
        os.close(slave)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, below zero for a signal; None while it runs."""
        return self._process.poll()

    def settings(self) -> list[Any]:
        """The terminal's settings (tcgetattr)."""
        return termios.tcgetattr(self._master)

    def write(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def read_until(self, text: bytes) -> None:
        """Returns once `text` was written to the terminal."""
        self.read_while(lambda: text not in self.output, f"no {text!r} on the terminal")

    def read_while(self, condition: Callable[[], bool], failure: str) -> None:
        """Keeps the terminal's output flowing into `output` for as long as the condition holds."""
        end = time.monotonic() + self.deadline
        while condition():
            if time.monotonic() > end:
                raise HarnessError(f"{failure} after {self.deadline:g} s: {self.output[-2000:]!r}")
            if not self._read(0.02) and self.code is not None:
                if condition():
                    raise HarnessError(f"{failure}, and memtrace ended with {self.code}: {self.output[-2000:]!r}")
                return

    def finish(self) -> int:
        """Waits for memtrace's end, reading what it writes; returns its exit code."""
        self.read_while(lambda: self.code is None, "memtrace still runs")
        while self._read(0):
            pass
        code = self.code
        assert code is not None
        return code

    def hang_up(self) -> int:
        """Closes the terminal, as a lost connection does (SIGHUP); returns memtrace's exit code."""
        self._close_master()
        return self._process.wait(self.deadline)

    def kill(self) -> None:
        self._process.kill()

    def after_live_view(self) -> str:
        """What stands on the normal screen after the live view, without control sequences."""
        return plain_text(self.output.rpartition(NORMAL_SCREEN)[2])

    def close(self) -> None:
        if self.code is None:
            self._process.kill()
        self._close_master()
        self._process.wait(self.deadline)

    def _read(self, timeout: float) -> bool:
        # Whether anything came. EIO says that memtrace has closed the other end.
        if not select.select([self._master], [], [], timeout)[0]:
            return False
        with contextlib.suppress(OSError):
            chunk = os.read(self._master, 65536)
            self.output += chunk
            return bool(chunk)
        return False

    def _close_master(self) -> None:
        if self._master >= 0:
            os.close(self._master)
        self._master = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def plain_text(output: bytes) -> str:
    """Terminal output without its control sequences."""
    return _CONTROL.sub(b"", output).decode(errors="replace")
