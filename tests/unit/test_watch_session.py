"""A watch from start to end: on a process made of figures, and on real ones whose memory moves on command.

Time is made up in both: each step of a test is one second to the session.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.bpf.harness import Target
from tests.targets.moves import UNIT
from tests.unit.watches import GIB, KIB, MIB, Clock, FakeProcess, Shown, anon, of_file
from tracer.errors import PrivilegeError, TargetError
from tracer.model.watch import MemoryLimit, WatchSummary
from tracer.target import ProcessHandle, TargetInfo, check_target
from tracer.watch.readers import ProcReaders, Readers
from tracer.watch.session import Life, WatchOptions, WatchSession

MOVES = Path(__file__).resolve().parents[1] / "targets" / "moves.py"
Step = Callable[[], object]


class Steps:
    """A life in which each second does the next step; after the last one the user presses Ctrl-C."""

    def __init__(self, clock: Clock, steps: Sequence[Step], handle: Life | None = None) -> None:
        self._clock = clock
        self._steps = list(steps)
        self._handle = handle
        self._began = clock.now
        self._done = 0
        self.has_ended_by = False

    @property
    def has_ended(self) -> bool:
        return self._handle.has_ended if self._handle else self.has_ended_by

    def wait(self, seconds: float) -> bool:
        self._clock.pass_by(seconds)
        if self._done < len(self._steps) and self._clock.now - self._began >= self._done + 0.5:
            self._steps[self._done]()
            self._done += 1
        return self.has_ended

    def stop_requested(self) -> str | None:
        return "Ctrl-C" if self._clock.now - self._began > len(self._steps) + 0.2 else None


def watch(
    readers: Readers,
    clock: Clock,
    steps: Sequence[Step],
    *,
    target: TargetInfo | None = None,
    handle: Life | None = None,
    life: Steps | None = None,
    view: Shown | None = None,
    options: WatchOptions | None = None,
    said: list[str] | None = None,
) -> WatchSummary:
    life = life or Steps(clock, steps, handle)
    session = WatchSession(
        target or TargetInfo(7, "a program", 1),
        options or WatchOptions(),
        readers,
        life,
        say=(said if said is not None else []).append,
        stop_requested=life.stop_requested,
        clock=clock,
    )
    return session.run(view or Shown())


def nothing() -> None:
    return None


def process_of(clock: Clock) -> FakeProcess:
    return FakeProcess(clock, [anon(0x10_1000, 8 * MIB, GIB), of_file(0x7F80_0000_0000, 2 * MIB)])


def grows(process: FakeProcess, by: int = MIB) -> Step:
    def step() -> None:
        old = process.usages[0]
        process.usages[0] = anon(old.vma.start, old.rss + by, GIB)

    return step


class TestMadeUp:
    def test_looks_at_every_interval(self) -> None:
        clock, view = Clock(), Shown()
        process = process_of(clock)
        summary = watch(process, clock, [nothing] * 6, view=view, options=WatchOptions(interval=0.5))
        assert summary.ended == "Ctrl-C"
        assert [state.looks[-1].seconds for state in view.states[:4]] == pytest.approx([0, 0.5, 1.0, 1.5], abs=0.11)
        assert summary.count == len(view.states)

    def test_the_duration(self) -> None:
        clock = Clock()
        summary = watch(process_of(clock), clock, [nothing] * 9, options=WatchOptions(duration=3.0))
        assert summary.ended == "the duration was over"
        assert summary.seconds == pytest.approx(3.0, abs=0.11)

    def test_the_key_q(self) -> None:
        clock, view = Clock(), Shown()
        view.quit = True
        assert watch(process_of(clock), clock, [nothing] * 9, view=view).ended == "the key q"

    def test_growth_is_projected_to_the_nearest_limit(self) -> None:
        clock = Clock()
        process = process_of(clock)
        process.bounds = [MemoryLimit("host", 9 * GIB, GIB), MemoryLimit("memory.max", 512 * MIB, 100 * MIB)]
        summary = watch(process, clock, [grows(process)] * 10)
        assert summary.verdict.kind == "growing"
        assert summary.projection is not None
        assert summary.projection.limit.name == "memory.max"
        assert summary.projection.seconds == pytest.approx(100, rel=0.05)

    def test_there_is_no_projection_without_growth(self) -> None:
        clock = Clock()
        process = process_of(clock)
        process.bounds = [MemoryLimit("memory.max", 512 * MIB, 100 * MIB)]
        summary = watch(process, clock, [*[grows(process)] * 4, *[nothing] * 12])
        assert (summary.verdict.kind, summary.projection) == ("levelled-off", None)

    def test_the_end_of_the_process_is_the_end_of_the_watch(self) -> None:
        clock = Clock()
        process = process_of(clock)
        life = Steps(clock, [])

        def die() -> None:
            life.has_ended_by = True
            process.errors["status"] = TargetError("gone")

        life._steps = [*[grows(process)] * 5, die, nothing, nothing]
        summary = watch(process, clock, [], life=life)
        assert summary.ended == "the process ended"
        assert any("the last look was" in note for note in summary.notes)
        assert summary.looks[-1].private == 13 * MIB, "the last look stands"

    def test_a_process_that_may_no_longer_be_read(self) -> None:
        clock = Clock()
        process = process_of(clock)

        def become_root() -> None:
            process.errors["status"] = PrivilegeError("no permission to read /proc/7/status")

        summary = watch(process, clock, [grows(process), become_root, nothing, nothing])
        assert summary.ended == "no permission to read /proc/7/status any more"
        assert summary.count == 2

    def test_exec_begins_anew(self) -> None:
        clock, view = Clock(), Shown()
        process = process_of(clock)

        def execute() -> None:
            process.replaced = True
            process.usages = [anon(0x55_5000, MIB)]

        summary = watch(process, clock, [grows(process, 9 * MIB), execute, nothing], view=view)
        assert summary.command == "another program"
        assert summary.looks[0].private == MIB, "the books are those of the new program"
        assert any("exec" in note for note in summary.notes)
        assert any("exec" in state.status for state in view.states)

    def test_exec_does_not_prolong_the_duration(self) -> None:
        clock = Clock()
        process = process_of(clock)

        def execute() -> None:
            process.replaced = True

        began = clock.now
        watch(process, clock, [nothing, execute, *[nothing] * 9], options=WatchOptions(duration=4.0))
        assert clock.now - began == pytest.approx(4.0, abs=0.2)

    def test_a_read_that_takes_long_is_announced(self) -> None:
        said: list[str] = []
        clock = Clock()
        process = FakeProcess(clock, [anon(0x10_1000, 8 * GIB)], has_scan=False)
        watch(process, clock, [nothing], said=said)
        assert said == [
            "reading smaps of 1 VMA and 8.0 GiB at start and end takes about 240 ms, in which the process may wait "
            "in mmap"
        ]

    def test_where_there_is_a_cheaper_way_it_is_taken_and_told(self) -> None:
        said: list[str] = []
        clock = Clock()
        process = FakeProcess(clock, [anon(0x10_1000, 8 * GIB)])
        summary = watch(process, clock, [nothing], said=said)
        assert said == [] and "smaps" not in process.reads
        assert any("--full reads it all the same" in note for note in summary.notes)
        assert all(row.private_growth is None for row in summary.classes)
        watch(process, clock, [nothing], said=said, options=WatchOptions(full=True))
        assert len(said) == 1 and process.reads.count("smaps") == 2

    def test_its_own_cost_is_told(self) -> None:
        clock = Clock()
        process = process_of(clock)
        process.costs = {"smaps": 0.004}
        summary = watch(process, clock, [grows(process)] * 20)
        assert summary.cost.reads[0].name == "smaps"
        assert summary.cost.reads[0].longest == pytest.approx(0.004)
        assert 0 < summary.cost.share <= 0.011
        assert summary.cost.self_rss > MIB

    def test_a_long_watch_keeps_few_looks(self) -> None:
        clock = Clock()
        process = process_of(clock)
        summary = watch(process, clock, [grows(process, 64 * KIB)] * 700)
        assert summary.count > 700
        assert len(summary.looks) <= 242
        assert summary.looks[0].seconds == 0 and summary.looks[-1].seconds == summary.seconds


def watch_real(commands: str) -> tuple[WatchSummary, Target]:
    """Watch a process that obeys one command in each second."""
    clock = Clock()
    with Target([sys.executable, str(MOVES)]) as target:
        info = check_target(target.pid)
        handle, readers = ProcessHandle(info), ProcReaders(target.pid)
        try:
            steps = [
                (lambda letter=letter: target.command(letter)) if letter != "." else nothing for letter in commands
            ]
            return watch(readers, clock, steps, target=info, handle=handle), target
        finally:
            readers.close()
            handle.close()


def growth_of(summary: WatchSummary, name: str) -> int:
    return next((row.growth for row in summary.classes if row.name == name), 0)


class TestReal:
    """What the kernel says of a real process; a few pages are the interpreter's own."""

    SLACK = 512 * KIB

    def test_growth_of_the_heap(self) -> None:
        summary, _ = watch_real("hhhhhh")
        assert summary.verdict.kind == "growing"
        assert growth_of(summary, "heap") == pytest.approx(6 * UNIT, abs=2 * self.SLACK)
        top = max(summary.regions, key=lambda row: row.growth)
        assert (top.path, top.vma_class) == (b"[heap]", "heap")
        assert sum(row.growth for row in summary.regions) == pytest.approx(
            summary.looks[-1].occupied - summary.looks[0].occupied, abs=self.SLACK
        )
        assert all(look.private_is_exact for look in summary.looks)

    def test_growth_of_mappings_and_shared_memory(self) -> None:
        summary, _ = watch_real("msmsms")
        assert growth_of(summary, "shared memory") == pytest.approx(3 * UNIT, abs=self.SLACK)
        # Memory of its own that malloc did not map.
        assert growth_of(summary, "anonymous") == pytest.approx(3 * UNIT, abs=self.SLACK)
        assert any("shared memory" in line for line in summary.verdict.evidence)

    def test_pages_of_files_are_no_private_growth(self) -> None:
        summary, _ = watch_real("ffffff")
        assert growth_of(summary, "file") == pytest.approx(6 * UNIT, abs=self.SLACK)
        assert summary.verdict.kind == "not-growing"
        assert any("file pages" in line for line in summary.verdict.evidence)

    def test_a_plateau(self) -> None:
        summary, _ = watch_real("hhhh..............")
        assert summary.verdict.kind == "levelled-off"

    def test_what_comes_and_goes(self) -> None:
        summary, _ = watch_real("mumumumumu")
        assert summary.verdict.kind == "not-growing"

    def test_memory_given_back_by_madv_free(self) -> None:
        """It is resident still, and the counters have it; but it is not the process's any more."""
        summary, _ = watch_real("mamamamama")
        assert growth_of(summary, "anonymous") == pytest.approx(5 * UNIT, abs=self.SLACK)
        assert summary.looks[-1].private - summary.looks[0].private < UNIT
        assert summary.verdict.kind == "not-growing"

    def test_exec(self) -> None:
        summary, _ = watch_real("hhx..")
        assert any("exec" in note for note in summary.notes)
        assert abs(growth_of(summary, "heap")) < UNIT, "the old program's heap is not in it"

    def test_the_end_of_the_process(self) -> None:
        clock = Clock()
        with Target([sys.executable, str(MOVES)]) as target:
            info = check_target(target.pid)
            handle, readers = ProcessHandle(info), ProcReaders(target.pid)
            steps = [lambda: target.command("h"), lambda: os.kill(target.pid, signal.SIGKILL), nothing, nothing]
            summary = watch(readers, clock, steps, target=info, handle=handle)
            readers.close()
            handle.close()
        assert summary.ended == "the process ended"
        assert summary.looks[-1].private > summary.looks[0].private


class TestRealReaders:
    def test_the_sum_of_private_memory_is_that_of_smaps(self) -> None:
        with Target([sys.executable, str(MOVES)]) as target:
            readers = ProcReaders(target.pid)
            usages = readers.smaps()
            assert readers.private() == sum(usage.private_dirty + usage.swap for usage in usages)
            assert [usage.rss for usage in readers.scan(readers.maps())] == [usage.rss for usage in usages]
            assert not readers.was_replaced()
            assert target.command("x")["ready"]
            assert readers.was_replaced() and not readers.was_replaced()
            readers.close()

    def test_after_the_end(self) -> None:
        with Target([sys.executable, str(MOVES)]) as target:
            readers = ProcReaders(target.pid)
            target.quit()
            for _ in range(2):
                for read in (readers.status, readers.maps, readers.smaps, readers.private, readers.was_replaced):
                    with pytest.raises(TargetError):
                        read()
            readers.close()

    def test_a_leader_that_has_exited_while_a_thread_lives(self) -> None:
        code = (
            "import ctypes, threading, sys\n"
            "def live():\n"
            "    print('ready', flush=True)\n"
            "    sys.stdin.read()\n"
            "threading.Thread(target=live).start()\n"
            "ctypes.CDLL(None).pthread_exit(None)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stdin is not None
            assert process.stdout.readline() == "ready\n"
            deadline = 2000
            while Path(f"/proc/{process.pid}/maps").read_bytes() and deadline:
                deadline -= 1
            readers = ProcReaders(process.pid)
            try:
                assert readers.status().vm_size and readers.maps() and readers.private() and readers.smaps()
                assert not readers.was_replaced()
            finally:
                readers.close()
                process.kill()
