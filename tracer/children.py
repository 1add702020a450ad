"""Children that the target makes while it is traced: each is traced by a memtrace of its own.

They have their own programs, maps and probes, filtered to their process, so that neither the parent nor this session
knows of them. What they report is collected at the end.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tracer.units import plural

_MOST = 8
_END_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class _Child:
    pid: int
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    errors: IO[bytes]


class ChildTracers:
    """``look`` begins to trace new children; ``reports`` ends all of it. Leaving it ends what still runs.

    ``command`` is the command line before the child's pid, ``options`` what follows it.
    """

    def __init__(
        self, pid: int, options: Sequence[str], say: Callable[[str], None], command: Sequence[str] | None = None
    ) -> None:
        self._pid = pid
        self._options = list(options)
        self._say = say
        self._command = list(command or (sys.executable, "-m", "tracer", "attach"))
        self._before = set(children_of(pid))
        self._children: dict[int, _Child] = {}
        self._passed_over = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for child in self._children.values():
            if child.process.poll() is None:
                child.process.kill()
                child.process.wait()
            child.output.close()
            child.errors.close()

    def look(self) -> None:
        """Begin to trace the children that have come since the last look."""
        for pid in children_of(self._pid):
            if pid in self._before or pid in self._children:
                continue
            self._before.add(pid)
            if sum(child.process.poll() is None for child in self._children.values()) >= _MOST:
                self._passed_over += 1
                continue
            self._children[pid] = self._start(pid)
            self._say(f"child process {pid}: traced, too")

    def _start(self, pid: int) -> _Child:
        output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        process = subprocess.Popen(
            [*self._command, str(pid), *self._options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            cwd=Path(__file__).resolve().parents[1],
            preexec_fn=_end_with_parent,
        )
        return _Child(pid, process, output, errors)

    def reports(self) -> list[str]:
        """What each child's memtrace reports, in the order of their beginnings."""
        running = [child.process for child in self._children.values() if child.process.poll() is None]
        for process in running:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        for process in running:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return [self._report_of(child) for child in self._children.values()]

    def _report_of(self, child: _Child) -> str:
        child.output.seek(0)
        text = child.output.read().decode("utf-8", "replace")
        if not text.strip():
            child.errors.seek(0)
            reasons = [line for line in child.errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
            self._say(f"child process {child.pid}: no report: {reasons[-1] if reasons else 'it ended at once'}")
        return text

    def summary(self, made: int) -> str:
        """A sentence for the parent's report, of ``made`` children in all."""
        traced = len(self._children)
        more = f", {self._passed_over} were too many at once" if self._passed_over else ""
        return (
            f"{plural(made, 'child process', 'es')} made in the window: {traced} traced by their own memtrace"
            f"{more}, {max(0, made - traced - self._passed_over)} had ended before they were found"
        )


def children_of(pid: int) -> list[int]:
    """The children of all threads of a process (proc(5), task/TID/children); none where it has ended."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text(encoding="ascii").split())
    return sorted(found)


def _end_with_parent() -> None:
    """Whatever ends this memtrace, SIGKILL included, ends those of the children, which detach then."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
