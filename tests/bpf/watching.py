"""What tests look at in a process that is being traced: its code, the states of its threads, who has stopped it."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bpf.harness import POLL, process_state

STOPPED = frozenset("Tt")


def code_of(pid: int) -> bytes:
    """All file-backed code of a process as it is in its memory now, breakpoints of uprobes included; b"" of a dead one.

    Reading does not stop the process. It faults pages in, so RSS (file) may grow by it.
    """
    parts = []
    with contextlib.suppress(OSError), open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_bytes().splitlines():
            fields = line.split(maxsplit=5)
            if fields[1][2:3] == b"x" and fields[4] != b"0":
                start, end = (int(bound, 16) for bound in fields[0].split(b"-"))
                memory.seek(start)
                parts.append(memory.read(end - start))
    return b"".join(parts)


def run_times(pid: int) -> dict[int, int]:
    """Nanoseconds that each thread of a process has run, by thread id (schedstat)."""
    times = {}
    for thread in _threads(pid):
        with contextlib.suppress(OSError):
            times[thread] = int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_bytes().split()[0])
    return times


def was_stopped(child: int) -> bool:
    """Whether a child of ours was stopped by a signal since the last call, and perhaps continued: no stop is missed."""
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, child, os.WSTOPPED | os.WCONTINUED | os.WNOHANG) is not None
    return False


class StateWatch:
    """While entered, samples the states of all threads of a process.

    `states` are the letters seen, `samples` how often it looked, `tracers` the processes that were seen to ptrace it.
    """

    def __init__(self, pid: int) -> None:
        self.states: set[str] = set()
        self.tracers: set[int] = set()
        self.samples = 0
        self._pid = pid
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="StateWatch")

    def _sample(self) -> None:
        while not self._ending.wait(POLL):
            for thread in _threads(self._pid):
                self.states.add(process_state(thread))
            self._look_for_tracer()
            self.samples += 1

    def _look_for_tracer(self) -> None:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{self._pid}/status").read_bytes()
            tracer = int(status.split(b"\nTracerPid:", 1)[1].split(b"\n", 1)[0])
            if tracer:
                self.tracers.add(tracer)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []
