"""Traced runs of target programs, each made once in a test session and shared by all tests that look at it.

A run is: start the target, attach memtrace, let the target go through its phases, stop memtrace. The target is quiet
whenever its memory is read here, so what the kernel says of it holds for memtrace's snapshots too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest

from tests.bpf.harness import HarnessError, Json, Memtrace, Target, plain_name, process_state, wait_for
from tests.targets.build import MissingCompiler, command

FIELDS = ("bytes", "count", "allocated_bytes", "allocated_count", "freed_bytes", "freed_count")
NOTHING = dict.fromkeys(FIELDS, 0)

# The lines that memtrace writes on stderr: one for each interval; one when probes have come, at the start, after an
# exec, or with a library that was loaded later.
_TICK = re.compile(r"^ *\d+ s  RSS ", re.MULTILINE)
_PROBED = r"^(?:now )?tracing\b.*\b{}(?: malloc)? in .*\n"


class Watched(Memtrace):
    """A memtrace whose lines on stderr tell when it has come to know something."""

    def wait_for_ticks(self, count: int) -> None:
        """Returns after `count` more lines of the live view: two, and what happened before has been looked at."""
        self._drain()
        wanted = len(_TICK.findall(self._text("stderr"))) + count
        self._wait(lambda: len(_TICK.findall(self._text("stderr"))) >= wanted, f"no {count} further ticks")

    def wait_for_probes(self, allocator: str, times: int = 1) -> None:
        """Returns once memtrace has said `times` times that it traces this allocator."""
        line = re.compile(_PROBED.format(allocator), re.MULTILINE)
        self._wait(lambda: len(line.findall(self._text("stderr"))) >= times, f"no line that it traces {allocator}")

    def _wait(self, condition: Callable[[], bool], failure: str) -> None:
        self._read_until(condition, failure)
        if not condition():
            raise HarnessError(f"memtrace ended, {failure}:\n{self._text('stderr')}")

    def _drain(self) -> None:
        while self._selector.get_map() and (events := self._selector.select(0)):
            for key, _ in events:
                chunk = os.read(key.fd, 65536)
                self._output[key.data] += chunk
                if not chunk:
                    self._selector.unregister(key.fileobj)


Settle = Callable[[Target, Watched], None]


def new_program_is_probed(target: Target, memtrace: Watched) -> None:
    """After an exec: glibc's malloc has been found a second time."""
    memtrace.wait_for_probes("glibc", times=2)


def jemalloc_is_probed(target: Target, memtrace: Watched) -> None:
    memtrace.wait_for_probes("jemalloc")


def new_code_is_known(target: Target, memtrace: Watched) -> None:
    """A library without an allocator is announced by nothing, but the second tick comes after a look at the maps."""
    memtrace.wait_for_ticks(2)


@dataclass(frozen=True, slots=True)
class Case:
    """What is run. `settle` is called after the first phase; `paced` starts each phase at a tick of memtrace's."""

    target: str
    arguments: tuple[str | int, ...] = ()
    preload: str | None = None
    options: tuple[str, ...] = ()
    phases: int = 2
    paced: bool = False
    settle: Settle | None = None

    def __str__(self) -> str:
        words = [self.target, *(str(argument) for argument in self.arguments)]
        return "-".join(words + ([self.preload.split(".")[0].split("_")[0]] if self.preload else []))


@dataclass(frozen=True, slots=True)
class Memory:
    """A quiet process's memory in bytes: the counters of /proc/PID/status, and `mapped`, which counts page tables.

    The two differ where the kernel holds back what single CPUs or threads counted (not from 6.16 on).
    """

    anon: int
    file: int
    shmem: int
    mapped: int

    @property
    def rss(self) -> int:
        return self.anon + self.file + self.shmem

    @property
    def held_back(self) -> int:
        return self.mapped - self.rss


@dataclass(frozen=True, slots=True)
class Run:
    """What a run brought: memtrace's report, the target's answers, and the kernel's figures at both ends."""

    case: Case
    report: Json
    stderr: str
    answers: tuple[Json, ...]
    before: Memory
    after: Memory

    @property
    def truth(self) -> dict[str, dict[str, int]]:
        """The target's tallies after its last phase."""
        return tallies(self.answers[-1])

    @property
    def stacks(self) -> list[Json]:
        return list(self.report["stacks"])

    def note(self, words: str) -> str | None:
        """The note that holds these words."""
        return next((note for note in self.report["notes"] if words in note), None)

    def noted_number(self, words: str) -> int | None:
        """The number with which the note that holds these words begins."""
        number = re.match(r"[\d,]+", self.note(words) or "")
        return int(number[0].replace(",", "")) if number else None


_RUNS = pytest.StashKey[dict[Case, "Run | BaseException"]]()
_AT_ONCE = 2


def traced_run(request: pytest.FixtureRequest, targets_dir: Path, case: Case) -> Run:
    """The run of a case, made when it is first asked for. One that failed, or was skipped, fails so for every test.

    A run waits for its processes most of the time, so another one that a later test will ask for is made beside it.
    """
    made = request.config.stash.setdefault(_RUNS, {})
    if case not in made:
        others = (other for other in _cases_to_come(request) if other not in made and other != case)
        batch = [case, *islice(others, _AT_ONCE - 1)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            made.update(zip(batch, pool.map(lambda each: _outcome(each, targets_dir), batch), strict=True))
    result = made[case]
    if isinstance(result, BaseException):
        raise result
    return result


def _cases_to_come(request: pytest.FixtureRequest) -> Iterator[Case]:
    """The cases of all selected tests that are parametrised over cases, in the order of the tests."""
    for item in request.session.items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            case = item.callspec.params.get("case")
            if isinstance(case, Case):
                yield case


def _outcome(case: Case, targets_dir: Path) -> Run | BaseException:
    try:
        return _trace(case, targets_dir)
    except (Exception, pytest.skip.Exception) as error:
        return error


def tallies(answer: Json) -> dict[str, dict[str, int]]:
    """The tallies in one answer of a target."""
    return dict(answer["stacks"])


def totals_of(stacks: Sequence[Json]) -> dict[str, int]:
    """Sums of FIELDS over stacks."""
    return {field: sum(stack[field] for stack in stacks) for field in FIELDS}


def functions_of(stack: Json) -> list[str]:
    """The names of the functions in a stack, innermost first."""
    return [plain_name(frame["function"]) for frame in stack["frames"] if frame["function"]]


def stacks_of(run: Run, function: str, kind: str = "malloc") -> list[Json]:
    """The stacks of a kind whose innermost function among those that the target tallies is this one."""
    owners = {*run.truth, function}
    return [
        stack
        for stack in run.stacks
        if stack["kind"] == kind and next((name for name in functions_of(stack) if name in owners), None) == function
    ]


def wait_until_quiet(target: Target) -> None:
    """Returns when the target waits for a command and all its threads sleep."""
    tasks = Path(f"/proc/{target.pid}/task")
    wait_for(target.is_waiting, f"{target.argv[0]} waiting for a command")
    wait_for(
        lambda: all(_thread_state(target.pid, int(task.name)) == "S" for task in tasks.iterdir()),
        f"all threads of {target.argv[0]} asleep",
    )


def memory_of(pid: int) -> Memory:
    status = _kib_fields(Path(f"/proc/{pid}/status"))
    rollup = _kib_fields(Path(f"/proc/{pid}/smaps_rollup"))
    return Memory(status["RssAnon"], status["RssFile"], status["RssShmem"], rollup["Rss"])


def _trace(case: Case, targets_dir: Path) -> Run:
    try:
        argv = command(case.target, targets_dir, *case.arguments)
    except MissingCompiler as error:
        pytest.skip(str(error))
    with Target(argv, {"LD_PRELOAD": case.preload} if case.preload else None) as target:
        if case.preload and case.preload not in Path(f"/proc/{target.pid}/maps").read_text():
            pytest.skip(f"{case.preload} is not installed")
        wait_until_quiet(target)
        with Watched(target.pid, *case.options) as memtrace:
            before = memory_of(target.pid)
            answers = _go(case, target, memtrace)
            wait_until_quiet(target)
            after = memory_of(target.pid)
            finished = memtrace.stop()
        assert target.quit() == 0
    return Run(case, finished.required_report(), finished.stderr, answers, before, after)


def _go(case: Case, target: Target, memtrace: Watched) -> tuple[Json, ...]:
    answers = []
    for phase in range(case.phases):
        if case.paced:
            memtrace.wait_for_ticks(1)
        answers.append(target.go())
        if phase == 0 and case.settle is not None:
            case.settle(target, memtrace)
    return tuple(answers)


def _thread_state(pid: int, tid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        stat = Path(f"/proc/{pid}/task/{tid}/stat").read_bytes()
        return chr(stat[stat.rindex(b")") + 2])
    return process_state(tid)


def _kib_fields(file: Path) -> dict[str, int]:
    lines = (line.partition(":") for line in file.read_text(errors="replace").splitlines())
    return {name: int(value.split()[0]) * 1024 for name, _, value in lines if value.endswith(" kB")}
