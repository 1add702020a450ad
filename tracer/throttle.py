"""Carries out what the budget decides: tells it what our traps cost the target, and changes sampling and probes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from tracer.attachment import Attachment
from tracer.budget import Budget, Load, Orders
from tracer.calibration import TrapCosts
from tracer.errors import TargetError
from tracer.model.sampling import scale_of
from tracer.model.survival import Window
from tracer.probes.layout import Settings
from tracer.probes.program import Program
from tracer.probes.runtime import RunTime, RunTimes

# Nanoseconds in our programs, until the kernel has told: of a call that is not sampled, of one that is beyond that, of
# a free and of the stack of a page fault.
_CALL_NS, _SAMPLED_NS, _FREE_NS, _STACK_NS = 70.0, 900.0, 40.0, 500.0
# Of a page fault without a stack, of another process's, and of the kernel's own timing of a program.
_FAULT_NS, _OTHERS_NS, _TIMING_NS = 150.0, 25.0, 40.0
_TIMED_EVERY = 2.0
_CALLS = ("session_call", "call_returns", "enter_malloc", "enter_valloc", "enter_calloc", "enter_realloc")
_CALL_PROGRAMS = (*_CALLS, "enter_reallocarray", "enter_memalign", "enter_posix_memalign", "enter_new")
_FAULT_PROGRAMS = ("on_page_fault", "on_rss_stat")
_FEW = 20
# An interval at which nothing is ever sampled.
_NONE = (1 << 64) - 1


@dataclass(slots=True)
class _ProgramCosts:
    """Nanoseconds in our programs for each of what the counters count."""

    call: float = _CALL_NS
    sampled: float = _SAMPLED_NS
    free: float = _FREE_NS
    stack: float = _STACK_NS

    def learn(self, times: dict[str, RunTime], counted: dict[str, int], fault_stacks: int) -> None:
        """Take over what was measured, where enough was counted; one fault in ``fault_stacks`` had a stack."""

        def total(names: tuple[str, ...]) -> float:
            known = [times[name] for name in names if name in times]
            return max(0.0, sum(time.ns - _TIMING_NS * time.runs for time in known))

        calls, sampled, frees = counted["probe_hits"], counted["sampled"], counted["free_hits"]
        if calls >= _FEW and not sampled:
            self.call = total(_CALL_PROGRAMS) / calls
        if sampled >= _FEW:
            self.sampled = max(0.0, total(_CALL_PROGRAMS) - self.call * calls) / sampled
        if frees >= _FEW:
            self.free = total(("enter_free",)) / frees
        faults = counted["faults"]
        if faults >= _FEW * fault_stacks:
            # The tracepoints run for every process; of the others' faults the programs make short work.
            others = sum(times[name].runs for name in _FAULT_PROGRAMS if name in times) - 2 * faults
            spent = total(_FAULT_PROGRAMS) - max(0, others) * _OTHERS_NS - faults * _FAULT_NS
            self.stack = max(0.0, spent) / faults * fault_stacks


class Throttle:
    """Between ``start`` and ``stop``, ``look`` is to be called at least every ``wait`` seconds.

    ``windows`` are the times in which the malloc probes were in; more than one where the budget took them out.
    """

    def __init__(
        self, program: Program, attachment: Attachment, pid: int, budget: Budget, traps: Callable[[], TrapCosts]
    ) -> None:
        self.budget = budget
        self.windows: list[Window] = []
        self.fault_stacks_sampled = False
        self._program = program
        self._attachment = attachment
        self._clock = (~pid << 3) | 2  # the process's CPU clock: MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)
        self._traps = traps
        self._costs = _ProgramCosts()
        self._run_times = RunTimes(program)
        self._timed_at = 0.0
        self._total = Load(0.0, 0.0)
        self._orders = Orders(budget.sample_bytes)
        self._probed_since = 0

    def start(self) -> None:
        """Switch the kernel side on; the probes are in."""
        self._counters = self._counted_from = self._program.counters()
        self._cpu = self._cpu_ns()
        self._looked = time.monotonic()
        self._next = self._looked + self._orders.look_in
        self.windows = [Window(time.monotonic_ns())]
        self._write_settings()

    def restart(self) -> None:
        """After an exec: the probes are in another program, and the load is another one."""
        self.budget = Budget(self.budget.limit, self.budget.sample_bytes, self.budget.steps)
        self._orders = Orders(self.budget.sample_bytes)
        self.start()

    @property
    def in_window(self) -> bool:
        """Whether the probes are in for some milliseconds only: whatever can wait should."""
        return self.budget.resting and self._orders.probes_on

    @property
    def wait(self) -> float:
        """Seconds until the next look."""
        return max(0.0, self._next - time.monotonic())

    @property
    def target_share(self) -> float | None:
        """The share of the target's CPU time that our traps took so far; None where it used none."""
        return min(1.0, self._total.cost / self._total.cpu) if self._total.cpu > 0 else None

    @property
    def cpu_share(self) -> float | None:
        """The same as a share of one CPU."""
        return self._total.cost / self._total.wall if self._total.wall > 0 else None

    @property
    def sample_bytes(self) -> int:
        """The interval in force outside of windows."""
        return self.budget.sample_bytes if self.in_window else self._orders.sample_bytes

    def look(self) -> None:
        """If it is time: judge what has passed, and act."""
        now = time.monotonic()
        if now < self._next:
            return
        load = self._load(now)
        # Of a process that hardly runs, a share of its CPU time would be next to nothing, though nobody waits for it.
        self._act(self.budget.look(replace(load, cpu=max(load.cpu, load.wall))))
        self._next = time.monotonic() + self._orders.look_in

    def stop(self) -> None:
        """Switch the kernel side off, and account for the rest."""
        self._program.set_settings(Settings(enabled=0))
        self._load(time.monotonic())
        self._run_times.close()
        if self._orders.probes_on:
            self.windows[-1] = Window(self.windows[-1].start, time.monotonic_ns())

    def _load(self, now: float) -> Load:
        counters, cpu = self._program.counters(), self._cpu_ns()
        passed = {name: value - self._counters[name] for name, value in counters.items()}
        load = self._priced(passed, now - self._looked, max(0, cpu - self._cpu) / 1e9)
        if passed["sampled"]:
            with suppress(TargetError):  # of one that has ended, nothing more need be learnt
                self._attachment.learn_trampoline()
        self._counters, self._cpu, self._looked = counters, cpu, now
        self._total = self._total + load
        self._time_programs(now, counters)
        return load

    def _priced(self, passed: dict[str, int], wall: float, cpu: float) -> Load:
        """Counted hits as seconds of the target's CPU time."""
        traps, programs, probes = self._traps(), self._costs, self._attachment
        calls, frees, sampled = passed["probe_hits"], passed["free_hits"], passed["sampled"]
        dear = traps.stepped - traps.entry
        of_samples = sampled * (traps.returned - traps.skipped + programs.sampled)
        of_calls = calls * (traps.skipped + programs.call + (dear if probes.stepped_allocations else 0.0))
        of_frees = frees * (traps.entry + programs.free + (dear if probes.stepped_frees else 0.0))
        of_stacks = passed["faults"] / self._orders.fault_stacks * programs.stack
        of_faults = passed["faults"] * (traps.fault + _FAULT_NS) + of_stacks
        return Load(
            wall,
            cpu,
            malloc=(of_calls + of_samples + of_frees) / 1e9,
            sampled=of_samples / 1e9,
            faults=of_faults / 1e9,
            fault_stacks=of_stacks / 1e9,
        )

    def _time_programs(self, now: float, counters: dict[str, int]) -> None:
        """Have the kernel time our programs from one look to the next, now and then."""
        if self._run_times.running:
            counted = {name: value - self._counted_from[name] for name, value in counters.items()}
            self._costs.learn(self._run_times.end(), counted, self._orders.fault_stacks)
        elif now - self._timed_at >= _TIMED_EVERY:
            self._timed_at, self._counted_from = now, counters
            self._run_times.begin()

    def _act(self, orders: Orders) -> None:
        before, self._orders = self._orders, orders
        self.fault_stacks_sampled |= orders.fault_stacks > 1
        if orders.probes_on and not before.probes_on:
            self._probed_since = time.monotonic_ns()
            self._write_settings()
            self.windows.append(Window(self._probed_since))
            self._attachment.resume_malloc()
        elif before.probes_on and not orders.probes_on:
            # No block is taken any more whose free might be missed while the probes go one after the other.
            self.windows[-1] = Window(self.windows[-1].start, time.monotonic_ns())
            self._write_settings()
            self._attachment.suspend_malloc()
        elif orders != before:
            self._write_settings()

    def _write_settings(self) -> None:
        known = self._attachment.probed and not self.budget.resting
        taken = self._orders.sample_bytes if self._orders.probes_on else _NONE
        self._program.set_settings(
            Settings(
                enabled=1,
                heap_is_known=int(bool(known)),
                sample_bytes=taken,
                sample_scale=scale_of(taken),
                probed_since=self._probed_since,
                fault_stacks=self._orders.fault_stacks,
                count_faults=int(self._attachment.rss_source == "faults"),
            )
        )

    def _cpu_ns(self) -> int:
        with suppress(OSError):  # it has ended
            return time.clock_gettime_ns(self._clock)
        return 0
