"""Records a session while it goes on, without holding it up.

What a look brings is handed to a thread, which compares it with the one before and writes what is new: a slow disk
makes looks be left out, never tracing wait. Where writing fails (a full disk), the file keeps what it has, one line
says so, and tracing goes on.
"""

from __future__ import annotations

import heapq
import os
import platform
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tracer import __version__
from tracer.errors import UsageError
from tracer.model.look import Look, Window
from tracer.model.report import Report, Sampling
from tracer.store.codec import encode
from tracer.store.guard import Guard
from tracer.store.observer import Named, Observer
from tracer.store.writer import MAX_BYTES, Writer, create_file
from tracer.units import human_bytes, human_seconds

# Naming the frames of new stacks may take so long at each look: what is left is named at later ones.
_NAMING_SECONDS = 0.003
# Among so many of the stacks without names, those that hold most come first.
_NAMING_CHOICE = 4096
# Looks that wait for a slow disk: further ones are left out, as the next says what has changed since.
_MAX_WAITING = 3
_BEGIN_SECONDS = 5.0
_FINISH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Begin:
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Seen:
    look: Look
    named: tuple[Named, ...]
    dropped: int


@dataclass(frozen=True, slots=True)
class _Finish:
    report: Report
    said: Callable[[], None]


class FileRecorder:
    """A recording in a new file. To be made before the process has threads, as it forks; close it in any case."""

    def __init__(
        self,
        path: Path,
        *,
        force: bool,
        pid: int,
        options: Mapping[str, Any],
        say: Callable[[str], None],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Raises UsageError where the file exists or cannot be written."""
        self.path = path
        self._say = say
        create_file(path, force=force)
        self._guard = Guard(path)
        try:
            self._writer = Writer(path, origin_of(pid, options), max_bytes=max_bytes)
        except sqlite3.Error as error:
            self._guard.close()
            path.unlink(missing_ok=True)
            raise UsageError(f"{path} cannot be written: {error}", "choose another place") from None
        self._waiting: queue.Queue[_Begin | _Seen | _Finish | None] = queue.Queue(_MAX_WAITING)
        self._worker = _Worker(self._writer, self._waiting, max_bytes)
        self._begun = self._told = self._closed = False
        self._dropped = 0

    def begin(self, window: Window) -> None:
        """The window begins; what was recorded before is void."""
        self._begun = True
        self._window = window
        self._unnamed: dict[int, None] = {}
        self._seen: set[int] = set()
        self._named: list[Named] = []
        self._dropped = 0
        self._missed: Look | None = None
        if not self._worker.is_alive():
            self._worker.start()
        meta = {"command": window.command, "started": window.started.isoformat(), "dropped": 0}
        with suppress(queue.Full):
            self._waiting.put(_Begin(meta), timeout=_BEGIN_SECONDS)
        self._hand_over(first_look(window))

    def look(self, look: Look) -> None:
        """An interval is over, or the window has ended."""
        if self._has_stopped():
            return
        new = [stack for stack in look.allocations if stack not in self._seen]
        new += [stack for _, stack in look.mapped or () if stack not in self._seen]
        self._seen.update(new)
        self._unnamed.update(dict.fromkeys(new))
        self._name_some(look)
        self._hand_over(look)

    def finish(self, report: Report) -> None:
        """The session's report, complete: when this returns it is in the file, or a line has said why not."""
        if self._worker.failure_told:  # that line may have scrolled away, or gone with the full-screen view
            self._say(f"{self.path} is incomplete: it ends {self._worker.failure}")
        if self._has_stopped():
            return
        written = threading.Event()
        with suppress(queue.Full):
            if self._missed is not None:  # the end of the window is not to be left out
                self._dropped -= 1
                self._waiting.put(_Seen(self._missed, tuple(self._named), self._dropped), timeout=_FINISH_SECONDS)
            self._waiting.put(_Finish(report, written.set), timeout=_FINISH_SECONDS)
            written.wait(_FINISH_SECONDS)
        if self._has_stopped():
            return
        if not written.is_set():
            self._say(f"{self.path} could not be finished in {human_seconds(_FINISH_SECONDS)}: the disk is too slow")
            return
        size = human_bytes(self.path.stat().st_size) if self.path.exists() else "it has been removed"
        left_out = f", {self._dropped} looks left out as the disk was too slow" if self._dropped else ""
        self._say(f"recorded in {self.path} ({size}{left_out}); to see it again: memtrace report {self.path}")

    def close(self) -> None:
        """Give everything back. A recording of which no window has begun is removed. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._worker.is_alive():
            with suppress(queue.Full):
                self._waiting.put(None, timeout=_FINISH_SECONDS)
                self._worker.join(_FINISH_SECONDS)
        if self._worker.is_alive():
            return  # the disk hangs: the guard sees to the file when memtrace has gone
        self._writer.close()
        self._guard.close()
        if not self._begun:
            self.path.unlink(missing_ok=True)

    def _hand_over(self, look: Look) -> None:
        try:
            self._waiting.put_nowait(_Seen(look, tuple(self._named), self._dropped))
            self._named = []
            self._missed = None
        except queue.Full:
            self._dropped += 1
            self._missed = look

    def _name_some(self, look: Look) -> None:
        """Name the frames of stacks that have none yet, as far as the time goes."""
        if not self._unnamed:
            return
        until = time.perf_counter() + _NAMING_SECONDS
        choice = islice(self._unnamed, _NAMING_CHOICE)
        none = (0, 0, 0, 0)
        mapped = {stack: held.bytes for (_, stack), held in (look.mapped or {}).items()}

        def holds(stack: int) -> int:
            totals = look.allocations.get(stack, none)
            return mapped.get(stack, 0) + totals[1] - totals[3]

        for stack in heapq.nlargest(_NAMING_CHOICE // 8, choice, key=holds):
            frames, complete = self._window.frames_of(stack)
            self._named.append(Named(stack, frames, complete))
            del self._unnamed[stack]
            if time.perf_counter() > until:
                return

    def _has_stopped(self) -> bool:
        """Whether nothing more is recorded; says so once."""
        if self._worker.lean_since is not None and not self._told and self._worker.failure is None:
            self._told = True
            self._say(
                f"the recording has reached its limit of {human_bytes(self._worker.max_bytes)}: from "
                f"{human_seconds(self._worker.lean_since)} on it keeps RSS and classes of memory, not stacks; the "
                "report at its end will be whole"
            )
        failure = self._worker.failure
        if failure is None:
            return False
        if not self._worker.failure_told:
            self._worker.failure_told = True
            self._say(f"the recording has stopped {failure}; {self.path} keeps what it has, and tracing goes on")
        return True


class _Worker(threading.Thread):
    """Writes what it is handed. ``failure`` says when and why it gave up."""

    def __init__(self, writer: Writer, waiting: queue.Queue[Any], max_bytes: int) -> None:
        super().__init__(name="recording", daemon=True)
        self.max_bytes = max_bytes
        self.failure: str | None = None
        self.failure_told = False
        self.lean_since: float | None = None
        self._writer = writer
        self._waiting = waiting
        self._observer = Observer()
        self._seconds = 0.0

    def run(self) -> None:
        while (item := self._waiting.get()) is not None:
            if self.failure is None:
                try:
                    self._write(item)
                except (sqlite3.Error, OSError) as error:
                    self._fail(error)
            if isinstance(item, _Finish):
                item.said()
            self._waiting.task_done()

    def _write(self, item: _Begin | _Seen | _Finish) -> None:
        match item:
            case _Begin():
                self._observer = Observer()
                self.lean_since, self._seconds = None, 0.0
                self._writer.begin(item.meta)
            case _Seen():
                self._add(item)
            case _Finish():
                self._writer.finish(item.report, self._observer.frames, {"ended": encode(item.report.ended)})

    def _add(self, seen: _Seen) -> None:
        changes = self._observer.changes(seen.look, seen.named, stacks=self.lean_since is None)
        if seen.dropped:
            changes.meta = {**changes.meta, "dropped": seen.dropped}
        if self.lean_since is None and self._writer.is_full:
            self.lean_since = seen.look.seconds
            changes.meta = {**changes.meta, "lean": self.lean_since}
        self._writer.add(changes)
        self._seconds = seen.look.seconds

    def _fail(self, error: Exception) -> None:
        self.failure = f"{human_seconds(self._seconds)} into the window ({error})"
        with suppress(sqlite3.Error):
            self._writer.close()


def origin_of(pid: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """What is known before the window begins."""
    system = os.uname()
    return {
        "host": system.nodename,
        "kernel": system.release,
        "arch": platform.machine(),
        "page_size": os.sysconf("SC_PAGE_SIZE"),
        "memtrace": __version__,
        "pid": pid,
        "options": dict(options),
    }


def first_look(window: Window) -> Look:
    """The start of the window, as a look."""
    return Look(
        seconds=0.0,
        rss=window.snapshot.counters,
        allocations={},
        mapped={},
        snapshot=window.snapshot,
        snapshot_age=0.0,
        classes=window.classes,
        counters={},
        losses={},
        probed=(),
        notes=(),
        sampling=Sampling(),
        rss_source="rss-stat",
        self_cpu=0.0,
        self_rss=0,
    )
