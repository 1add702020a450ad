"""Processes under test: a target program, and memtrace tracing it. Nothing sleeps; every wait has a deadline."""

from __future__ import annotations

import json
import os
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 30.0
POLL = 0.005

Json = dict[str, Any]
# Tests compare with the truth to the byte; options given later go before these.
EVERYTHING = ("--sample-bytes", "1", "--max-overhead", "none")


class HarnessError(AssertionError):
    """A process under test did not do in time what it should; says what it did instead."""


def wait_for(condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    """Returns as soon as the condition holds; raises HarnessError, naming `what`, after `deadline` seconds."""
    end = time.monotonic() + deadline
    pause = threading.Event()
    while not condition():
        if time.monotonic() > end:
            raise HarnessError(f"{what}: not within {deadline:g} s")
        pause.wait(POLL)


def process_state(pid: int) -> str:
    """The state letter of /proc/PID/stat: R, S, D, T, t, Z, ...; "" when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return chr(stat[stat.rindex(b")") + 2])  # the name before it may hold anything


class Target:
    """A target program between its start and its end; a context manager that leaves no process behind.

    `argv` comes from tests.targets.build.command(); `env` is added to the environment (LD_PRELOAD, ...).
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None = None, deadline: float = DEADLINE) -> None:
        self.argv = list(argv)
        self.deadline = deadline
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._unread = b""
        try:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, **(env or {})},
            )
        except BaseException:
            self._errors.close()
            raise
        try:
            self.ready = self.read_answer()
            if not self.ready.get("ready"):
                raise HarnessError(f"{self.argv[0]}: no ready line but {self.ready}")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def go(self) -> Json:
        """Runs a phase and returns its truth."""
        return self.command("g")

    def command(self, letter: str) -> Json:
        """Sends a command byte and returns the line that answers it."""
        self.send(letter)
        return self.read_answer()

    def send(self, letter: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(letter.encode() + b"\n")
        self._process.stdin.flush()

    def read_answer(self) -> Json:
        """The next line of the target's output, parsed."""
        assert self._process.stdout is not None
        end = time.monotonic() + self.deadline
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise HarnessError(f"{self.argv[0]}: no answer within {self.deadline:g} s{self._last_words()}")
                chunk = os.read(self._process.stdout.fileno(), 65536)
                if not chunk:
                    self._process.wait(self.deadline)
                    raise HarnessError(f"{self.argv[0]}: ended with {self._process.returncode}{self._last_words()}")
                self._unread += chunk
        line, self._unread = self._unread.split(b"\n", 1)
        return cast(Json, json.loads(line))

    def quit(self) -> int:
        """Ends the target by `q` and returns its exit code, below zero for a signal."""
        assert self._process.stdin is not None
        if self._process.poll() is None and not self._process.stdin.closed:
            self.send("q")
        return self._process.wait(self.deadline)

    def close_input(self) -> None:
        """Lets the target read end of file, which means `q` to it."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def state(self) -> str:
        """The state letter of the target's main thread."""
        return process_state(self.pid)

    def is_waiting(self) -> bool:
        """Whether the main thread is blocked in read(0), as /proc/PID/syscall says."""
        return Path(f"/proc/{self.pid}/syscall").read_text().startswith(_WAITING)

    def close(self) -> None:
        """Kills what is left of the target."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(self.deadline)
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None and not pipe.closed:
                pipe.close()

    def _last_words(self) -> str:
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip()
        return f": {words}" if words else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# The number of read and its first argument, in the form of /proc/PID/syscall.
_WAITING = "63 0x0 " if os.uname().machine == "aarch64" else "0 0x0 "


@dataclass(frozen=True, slots=True)
class Finished:
    """What is left of a memtrace that has ended. `report` is the JSON of stdout, or None where it is not JSON."""

    code: int
    report: Json | None
    stdout: str
    stderr: str

    def required_report(self) -> Json:
        """The report; raises HarnessError with memtrace's own words if there is none."""
        if self.code != 0 or self.report is None:
            raise HarnessError(f"memtrace ended with {self.code} and no report:\n{self.stderr}")
        return self.report


class Memtrace:
    """A running `memtrace PID --json OPTIONS...`, from the moment that all its probes are live.

    MEMTRACE_COMMAND replaces the command, `PYTHON -m tracer` by default. With await_tracing=False it does not wait for
    the line `tracing ...` on stderr; call wait_until_tracing(), or finish(), which waits for its end.
    """

    def __init__(
        self,
        pid: int,
        *options: str,
        env: Mapping[str, str] | None = None,
        deadline: float = DEADLINE,
        await_tracing: bool = True,
    ) -> None:
        self.deadline = deadline
        self._output = {"stdout": b"", "stderr": b""}
        self._process = subprocess.Popen(
            [*memtrace_command(), str(pid), "--json", *EVERYTHING, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
        self._selector = selectors.DefaultSelector()
        for name, pipe in (("stdout", self._process.stdout), ("stderr", self._process.stderr)):
            assert pipe is not None
            self._selector.register(pipe, selectors.EVENT_READ, name)
        try:
            if await_tracing:
                self.wait_until_tracing()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_tracing(self) -> None:
        """Returns once memtrace has said on stderr that it traces."""
        self._read_until(self._is_tracing, "no line `tracing ...`")
        if not self._is_tracing():
            code = self._process.wait(self.deadline)
            raise HarnessError(f"memtrace ended with {code} before it traced:\n{self._text('stderr')}")

    def stop(self, by: signal.Signals = signal.SIGINT) -> Finished:
        """Ends the trace as Ctrl-C does, and returns what came out."""
        if self._process.poll() is None:
            self._process.send_signal(by)
        return self.finish()

    def finish(self) -> Finished:
        """Waits for the end by itself (--duration, the target's end, a refusal) and returns what came out."""
        try:
            self._read_until(lambda: False, "still running")
            code = self._process.wait(self.deadline)
        finally:
            self.close()
        return Finished(code, _parsed(self._output["stdout"]), self._text("stdout"), self._text("stderr"))

    def close(self) -> None:
        """Kills what is left of memtrace."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(self.deadline)
        self._selector.close()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None and not pipe.closed:
                pipe.close()

    def _is_tracing(self) -> bool:
        return any(line.startswith(b"tracing ") for line in self._output["stderr"].split(b"\n")[:-1])

    def _read_until(self, condition: Callable[[], bool], failure: str) -> None:
        # Both pipes are read, or memtrace could block on the one that is not. Ends at the end of both.
        end = time.monotonic() + self.deadline
        while not condition() and self._selector.get_map():
            events = self._selector.select(max(0.0, end - time.monotonic()))
            if not events:
                raise HarnessError(f"memtrace: {failure} after {self.deadline:g} s:\n{self._text('stderr')}")
            for key, _ in events:
                chunk = os.read(key.fd, 65536)
                self._output[key.data] += chunk
                if not chunk:
                    self._selector.unregister(key.fileobj)

    def _text(self, name: str) -> str:
        return self._output[name].decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def memtrace_command() -> list[str]:
    """The command under test, without arguments."""
    return shlex.split(os.environ.get("MEMTRACE_COMMAND", "")) or [sys.executable, "-m", "tracer"]


def run_memtrace(*arguments: str, env: Mapping[str, str] | None = None, deadline: float = DEADLINE) -> Finished:
    """Runs memtrace with any arguments to its end: refusals, --version, other subcommands."""
    done = subprocess.run(
        [*memtrace_command(), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        timeout=deadline,
        check=False,
    )
    return Finished(
        done.returncode,
        _parsed(done.stdout),
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
    )


def plain_name(function: str) -> str:
    """A frame's function without parameters, namespace and clone suffix: "ns::f(int) [clone .part.0]" -> "f"."""
    return function.split("(", 1)[0].split(".", 1)[0].split(" ")[0].rsplit("::", 1)[-1]


def totals_by_function(report: Json, functions: Sequence[str], kind: str | None = None) -> dict[str, dict[str, int]]:
    """Sums of the report's stacks per function: each stack goes to the first of `functions` from the innermost frame.

    Keys of each sum: bytes, count, allocated_bytes, freed_bytes, and stacks, the number of stacks that went in. A
    function that is in no stack has zeros. `kind` leaves out the stacks of other kinds (malloc, mmap, fault, brk).
    """
    fields = ("bytes", "count", "allocated_bytes", "freed_bytes")
    sums = {function: dict.fromkeys((*fields, "stacks"), 0) for function in functions}
    for stack in report["stacks"]:
        if kind is not None and stack["kind"] != kind:
            continue
        names = (plain_name(frame["function"]) for frame in stack["frames"] if frame["function"])
        owner = next((name for name in names if name in sums), None)
        if owner is not None:
            for field in fields:
                sums[owner][field] += stack[field]
            sums[owner]["stacks"] += 1
    return sums


def _parsed(stdout: bytes) -> Json | None:
    try:
        report = json.loads(stdout)
    except ValueError:
        return None
    return report if isinstance(report, dict) else None
