"""A full-screen view on a terminal: the screen, the keys, and their end in good order whatever happens."""

from __future__ import annotations

import os
import select
import termios
import tty
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TextIO, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tracer.report.safe import Page

State = TypeVar("State", contravariant=True)
Shown = TypeVar("Shown")

HELD = "display held (p goes on)"


class View(Protocol[State]):
    """Where a session shows its progress; used as a context manager for as long as tracing goes on."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, state: State) -> None:
        """Show the newest state."""

    def poll(self) -> bool:
        """Act on the keys pressed since the last call; True when the user asks to stop."""


def can_move_cursor(stdout: TextIO, environ: Mapping[str, str]) -> bool:
    """True for a terminal that can show a full-screen view; ``TERM=dumb`` and pipes cannot."""
    return stdout.isatty() and environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


class GuardedView(Generic[Shown]):
    """A view that may fail (its terminal was closed, its disk is full) without costing the trace its report."""

    def __init__(self, view: View[Shown]) -> None:
        self._view = view

    def __enter__(self) -> Self:
        with suppress(OSError):
            self._view.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._view.__exit__(kind, error, trace)

    def update(self, state: Shown) -> None:
        """Show the newest state, if that is possible."""
        with suppress(OSError):
            self._view.update(state)

    def poll(self) -> bool:
        """True when the user asks to stop."""
        with suppress(OSError):
            return self._view.poll()
        return False


class KeyReader:
    """Single keys from a terminal, without waiting; where the file is no terminal there never is one."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self._fd = -1
        self._saved: list[Any] | None = None

    def __enter__(self) -> Self:
        if self._file is not None and self._file.isatty():
            self._fd = self._file.fileno()
            if self._in_foreground():
                self._saved = termios.tcgetattr(self._fd)
                tty.setcbreak(self._fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saved is not None and self._in_foreground():
            # The terminal may be gone by now (SIGHUP); then there is nothing left to restore.
            with suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
        self._saved = None

    def poll(self) -> str | None:
        """The next key pressed, or None; escape sequences (arrow keys and the like) are dropped."""
        if self._saved is None or not self._in_foreground():
            return None
        key = self._read(1)
        if key == b"\x1b":
            while self._read(64):
                pass
            return None
        return key.decode("ascii", "ignore") or None

    def _read(self, size: int) -> bytes:
        """What has been typed, at most ``size`` bytes; nothing if that is so, or if the terminal is gone."""
        if not select.select([self._fd], [], [], 0)[0]:
            return b""
        with suppress(OSError):
            return os.read(self._fd, size)
        return b""

    def _in_foreground(self) -> bool:
        """False for a background job: touching its terminal would stop it (SIGTTOU, SIGTTIN), probes and all."""
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            # Not our controlling terminal, so there is no job control either.
            return True


class ScreenView(Generic[Shown]):
    """A full-screen view of states. It holds the display on ``p`` and ends on ``q``; other keys are the heirs'."""

    def __init__(self, console: Console, keys: KeyReader) -> None:
        self._console = console
        self._keys = keys
        # Nothing of the session writes to stdout or stderr meanwhile, so they are left as they are.
        self._live = Live(
            console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._state: Shown | None = None
        self._shown: Shown | None = None
        self._paused = False

    def __enter__(self) -> Self:
        self._keys.__enter__()
        self._live.start(refresh=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._live.stop()
        finally:
            self._keys.__exit__(kind, error, trace)

    def update(self, state: Shown) -> None:
        """Show the newest state, or keep it for later while the display is held."""
        self._state = state
        if not self._paused:
            self._shown = state
        self._draw()

    def poll(self) -> bool:
        """Act on pressed keys; True when the user asks to stop."""
        while key := self._keys.poll():
            if key in "qQ":
                return True
            if key in ("p", "P", " "):
                self._hold()
            else:
                self._act(key.lower())
            self._draw()
        return False

    def _hold(self) -> None:
        self._paused = not self._paused
        if not self._paused:
            self._shown = self._state

    def _act(self, key: str) -> None:
        """Act on a key of the heir's own."""

    def _lines(self, state: Shown, page: Page, height: int, *, held: bool) -> list[Text]:
        """The state in at most ``height`` lines; ``held`` says that it is not the newest."""
        raise NotImplementedError

    def _draw(self) -> None:
        if self._shown is None:
            return
        page = Page(self._console.width, ascii_only=not self._console.encoding.startswith("utf"))
        lines = self._lines(self._shown, page, self._console.height, held=self._paused)
        for line in lines:
            line.no_wrap, line.overflow = True, "crop"
        self._live.update(Group(*lines), refresh=True)
