"""The attach safety matrix: programs that are hard to attach to, each attached and detached ten times in ten ways.

test_safety.py asserts it, scripts/bench/safety.py prints it. The ways and the programs are those of
research/heaptrack.md 3.3, where other tracers hung or killed the target.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bpf.harness import DEADLINE, POLL, HarnessError, Memtrace, Target, process_state, wait_for
from tests.bpf.kernel import BpfObject, bpf_objects, held_objects
from tests.bpf.terminal import Terminal
from tests.bpf.watching import STOPPED, StateWatch, code_of, run_times, was_stopped
from tests.targets.build import command

LIFE_DEADLINE = 15.0  # a target that shows no sign of life for so long hangs
GONE_DEADLINE = 10.0  # the kernel takes probes away after a grace period, in the background


class End(Enum):
    """What ends memtrace."""

    DURATION = "-d"
    SIGINT = "SIGINT"
    SIGTERM = "SIGTERM"
    SIGKILL = "SIGKILL"
    CLOSED_TERMINAL = "closed terminal"


class Moment(Enum):
    """When it ends: at once, with the first breakpoint in the target, when all are there, when the first has gone."""

    STARTING = "starting"
    ATTACHING = "attaching"
    TRACING = "tracing"
    DETACHING = "detaching"


WAYS = (
    (End.DURATION, Moment.TRACING),
    (End.SIGINT, Moment.TRACING),
    (End.SIGTERM, Moment.TRACING),
    (End.SIGKILL, Moment.TRACING),
    (End.CLOSED_TERMINAL, Moment.TRACING),
    (End.SIGINT, Moment.ATTACHING),
    (End.SIGTERM, Moment.ATTACHING),
    (End.SIGKILL, Moment.ATTACHING),
    (End.CLOSED_TERMINAL, Moment.ATTACHING),
    (End.SIGKILL, Moment.DETACHING),
)

_SIGNALS = {End.SIGINT: signal.SIGINT, End.SIGTERM: signal.SIGTERM, End.SIGKILL: signal.SIGKILL}


class Subject(ABC):
    """A program under load, started; a context manager that ends it in whatever state it is."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.pid = target.pid

    @abstractmethod
    def progress(self) -> int:
        """How much work it has done since its start. Raises HarnessError when it does not answer."""

    def busy_threads(self) -> set[int]:
        """The threads that never wait, each of which must go on running."""
        return set()

    def quit(self) -> int:
        """Ends it in order; returns its exit code."""
        return self.target.quit()

    def close(self) -> None:
        self.target.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Hot(Subject):
    """Threads that do nothing but malloc and free; a block that changed by itself ends the test."""

    def progress(self) -> int:
        count = self.target.command("c")
        if count["corrupt"]:
            raise HarnessError(f"{count['corrupt']} blocks of the target were overwritten")
        return int(count["pairs"])

    def busy_threads(self) -> set[int]:
        return set(run_times(self.pid)) - {self.pid}


class Driven(Subject):
    """A program that is quiet by itself, asked for phase after phase by a thread of ours."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._phases = 0
        self._ending = threading.Event()
        self._driver = threading.Thread(target=self._drive, name="driver")
        self._driver.start()

    def _drive(self) -> None:
        with contextlib.suppress(HarnessError, OSError):
            while not self._ending.wait(POLL):  # paced, since each phase leaks
                self.target.go()
                self._phases += 1

    def progress(self) -> int:
        return self._phases

    def quit(self) -> int:
        self._ending.set()
        self._driver.join(LIFE_DEADLINE)
        return super().quit()

    def close(self) -> None:
        self._ending.set()
        super().close()
        self._driver.join(LIFE_DEADLINE)


class Redis(Subject):
    """redis-server as Debian makes it (jemalloc), with redis-benchmark's pipelined load on a socket of its own."""

    _LOAD = ("-c", "4", "-P", "16", "-d", "64", "-r", "10000", "-t", "set,get", "-l", "-q")

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "redis.sock"
        server = ("redis-server", "--port", "0", "--unixsocket", str(self._socket), "--save", "", "--appendonly", "no")
        self._server = _quiet([*server, "--dir", str(directory), "--io-threads", "1"])
        self.pid = self._server.pid
        try:
            wait_for(self._answers, "redis-server answers")
            self._load = _quiet(["redis-benchmark", "-s", str(self._socket), *self._LOAD])
        except BaseException:
            self._server.kill()
            self._server.wait()
            raise

    def progress(self) -> int:
        if self._load.poll() is not None:
            raise HarnessError("redis-benchmark has ended: the server broke a connection")
        fields = dict(line.partition(b":")[::2] for line in self._ask(b"INFO stats\r\n").split(b"\r\n"))
        # What asking itself takes, a command or two, is not progress.
        return int(fields[b"total_commands_processed"]) // 1000

    def _ask(self, request: bytes) -> bytes:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(LIFE_DEADLINE)
                connection.connect(str(self._socket))
                connection.sendall(request + b"QUIT\r\n")
                return b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError as error:
            raise HarnessError(f"redis-server does not answer: {error}") from error

    def _answers(self) -> bool:
        if self._server.poll() is not None:
            raise HarnessError(f"redis-server ended with {self._server.returncode}")
        with contextlib.suppress(HarnessError):
            return self._ask(b"PING\r\n").startswith(b"+PONG")
        return False

    def quit(self) -> int:
        self._load.kill()
        self._load.wait()
        self._server.terminate()
        return self._server.wait(LIFE_DEADLINE)

    def close(self) -> None:
        for process in (self._load, self._server):
            process.kill()
            process.wait()


def _quiet(argv: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _driven(name: str) -> Callable[[Path], Subject]:
    return lambda directory: Driven(Target(command(name, directory, 500, 16)))


def _python(directory: Path) -> Subject:
    script = command("grow", directory)[1]
    return Driven(Target(["/usr/bin/python3", script, "20", "500"]))


def _redis(directory: Path) -> Subject:
    return Redis(Path(tempfile.mkdtemp(prefix="redis-", dir=directory)))


# What the table calls it, and how it is started; both kinds of directory are given by the caller.
SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "1 hot thread": lambda directory: Hot(Target(command("hot", directory, 1))),
    "4 hot threads": lambda directory: Hot(Target(command("hot", directory, 4))),
    "redis-server, pipelined load": _redis,
    "/usr/bin/python3": _python,
    "static binary": _driven("leak_malloc_static"),
    "non-PIE that takes malloc's address": _driven("malloc_address"),
    "malloc in a function table": _driven("function_table"),
}


@dataclass(slots=True)
class Row:
    """What came of attaching to one program: in how many runs it was attached to, and what harm was seen."""

    name: str
    runs: int = 0
    attached: int = 0
    hung: int = 0
    killed: int = 0
    stopped: int = 0
    still_probed: int = 0
    exit_code: int | None = None
    details: tuple[str, ...] = ()

    @property
    def is_safe(self) -> bool:
        return (
            self.runs == self.attached
            and not (self.hung or self.killed or self.stopped or self.still_probed or self.details)
            and self.exit_code == 0
        )


HEADINGS = ("target", "attached", "hung", "killed", "stopped", "still probed")


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table under HEADINGS."""
    harm = (row.hung, row.killed, row.stopped, row.still_probed)
    return (row.name, f"{row.attached}/{row.runs}", *(f"{count}/{row.runs}" for count in harm))


def trial(name: str, directory: Path, ways: tuple[tuple[End, Moment], ...] = WAYS) -> Row:
    """Attaches to a program in all ways, one after the other. A target that was harmed is replaced by a fresh one."""
    row = Row(name)
    left = list(ways)
    while left:
        with SUBJECTS[name](directory) as subject:
            wait_for(lambda subject=subject: subject.progress() > 0, f"{name}: works", LIFE_DEADLINE)  # type: ignore[misc]
            code = _settled_code(subject.pid)
            while left and _is_unharmed(row, subject, code, left.pop(0)):
                pass
            if not left and process_state(subject.pid) not in ("", "Z"):
                row.exit_code = subject.quit()
    return row


def _is_unharmed(row: Row, subject: Subject, code: bytes, way: tuple[End, Moment]) -> bool:
    row.runs += 1
    harm = []
    with StateWatch(subject.pid) as watch:
        run = _Run(subject, code, *way)
        try:
            run.go()
        except HarnessError as error:
            harm.append(f"memtrace: {error}")
        row.attached += run.was_attached
        if process_state(subject.pid) in ("", "Z"):
            row.killed += 1
            harm.append("killed")
        elif (reason := _why_hung(subject)) is not None:
            row.hung += 1
            harm.append(f"hung: {reason}")
        elif (reason := run.what_is_left()) is not None:
            row.still_probed += 1
            harm.append(f"still probed: {reason}")
    if watch.states & STOPPED or watch.tracers or was_stopped(subject.pid):
        row.stopped += 1
        harm.append(f"stopped: states {sorted(watch.states)}, tracers {sorted(watch.tracers)}")
    row.details += tuple(f"{way[0].value} while {way[1].value}: {what}" for what in harm)
    return not harm


def _why_hung(subject: Subject) -> str | None:
    """Waits until the program and each of its busy threads has got on; says what has not."""
    try:
        begin, times = subject.progress(), run_times(subject.pid)
        wait_for(lambda: subject.progress() > begin, "works on", LIFE_DEADLINE)
        wait_for(lambda: _have_run(subject, times), "all threads run on", LIFE_DEADLINE)
    except (HarnessError, OSError) as error:
        return str(error)
    return None


def _have_run(subject: Subject, before: dict[int, int]) -> bool:
    now = run_times(subject.pid)
    return all(now.get(thread, 0) > before.get(thread, 0) for thread in subject.busy_threads())


def _settled_code(pid: int) -> bytes:
    """The code of a process that has no probe: the same in two looks."""
    seen = code_of(pid)

    def is_same() -> bool:
        nonlocal seen
        before, seen = seen, code_of(pid)
        return before == seen

    wait_for(is_same, "code does not change")
    return seen


def _spin_until(condition: Callable[[], bool], what: str) -> None:
    """As wait_for, but without a pause: what follows must meet memtrace in the middle of it."""
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            raise HarnessError(f"{what}: not within {DEADLINE:g} s")


class _Run:
    """One attach and its end."""

    def __init__(self, subject: Subject, code: bytes, end: End, moment: Moment) -> None:
        self.was_attached = False
        self._subject = subject
        self._code = code
        self._end = end
        self._moment = moment
        self._awaits_tracing = moment in (Moment.TRACING, Moment.DETACHING)
        self._held: set[BpfObject] = set()

    def go(self) -> None:
        """Runs memtrace to its end. Raises HarnessError when it does not get there, or not as it should."""
        if self._end is End.CLOSED_TERMINAL:
            with Terminal(str(self._subject.pid)) as terminal:
                if self._moment is Moment.TRACING:
                    terminal.read_until(b"tracing process")
                if self._moment is not Moment.STARTING:
                    self._await_attached(terminal.pid, lambda: terminal.code)
                terminal.hang_up()
            return
        duration = ("-d", "0.3") if self._end is End.DURATION else ()
        with Memtrace(self._subject.pid, *duration, await_tracing=self._awaits_tracing) as memtrace:
            if self._moment is not Moment.STARTING:
                self._await_attached(memtrace.pid, lambda: None)
            if self._moment is Moment.DETACHING:
                self._await_detaching(memtrace)
            done = memtrace.finish() if self._end is End.DURATION else memtrace.stop(_SIGNALS[self._end])
        if self._end is not End.SIGKILL and self._moment is not Moment.STARTING:
            done.required_report()

    def _await_attached(self, memtrace: int, code: Callable[[], int | None]) -> None:
        def is_attached() -> bool:
            if code() is not None or process_state(memtrace) in ("", "Z"):
                raise HarnessError(f"ended with {code()} before it was attached")
            return code_of(self._subject.pid) not in (self._code, b"")

        _spin_until(is_attached, "a breakpoint in the target's code")
        self.was_attached = True
        self._held = held_objects(memtrace)

    def _await_detaching(self, memtrace: Memtrace) -> None:
        probed = _settled_code(self._subject.pid)
        os.kill(memtrace.pid, signal.SIGINT)  # it is our child: its pid is nobody else's
        _spin_until(lambda: code_of(self._subject.pid) != probed, "a probe goes")

    def what_is_left(self) -> str | None:
        """Waits for the last probe to go; says what has not."""
        try:
            wait_for(lambda: code_of(self._subject.pid) == self._code, "code as before", GONE_DEADLINE)
            wait_for(lambda: not self._held & bpf_objects(), "programs, maps and links freed", GONE_DEADLINE)
        except HarnessError as error:
            return str(error)
        return None
