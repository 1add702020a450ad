"""What a machine, or a process, allows: the findings of ``memtrace doctor``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tracer.errors import MemtraceError

State = Literal["ok", "missing", "untried"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What trying something showed; ``detail`` says more, or why it failed or could not be tried."""

    state: State
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried: what is lost without it, how to get it, and whether nothing works without it."""

    group: str
    name: str
    outcome: Outcome
    loss: str = ""
    fix: str = ""
    required: bool = False

    @property
    def ok(self) -> bool:
        """Whether it is there; what could not be tried is not known to be."""
        return self.outcome.state == "ok"

    @property
    def prevents(self) -> bool:
        """Whether tracing cannot work, or cannot be said to, because of it."""
        return self.required and not self.ok


@dataclass(frozen=True, slots=True)
class ProbePlace:
    """One breakpoint: ``offset`` in the file, ``distance`` bytes behind the start of ``function``.

    ``kinds`` are the probes that share it (``entry``, ``return``, ``ret-instruction``). An instruction that the kernel
    does not emulate is single-stepped, which costs ten times as much; ``reason`` says why there is no better place.
    """

    function: str
    kinds: tuple[str, ...]
    offset: int
    distance: int
    instruction: str
    emulated: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AllocatorPlan:
    """An allocator in the process and the breakpoints that it would get. ``notes`` say what would not be traced."""

    name: str
    path: str
    places: tuple[ProbePlace, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModuleCoverage:
    """A mapped file: bytes of ``code`` and how many of them have a rule; ``problem`` says why there are none.

    Padding between functions has no rule either, so that a whole table covers 97 % or more, not all. ``reasons`` counts
    functions and rows that could not be represented.
    """

    path: str
    code: int
    covered: int
    problem: str = ""
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class TargetHealth:
    """A process as tracing would find it; ``modules`` are the files whose code it runs."""

    pid: int
    command: str
    checks: tuple[Check, ...]
    allocators: tuple[AllocatorPlan, ...] = ()
    modules: tuple[ModuleCoverage, ...] = ()

    @property
    def is_traceable(self) -> bool:
        """Whether nothing about this process prevents tracing."""
        return not any(check.prevents for check in self.checks)


def tried(attempt: Callable[[], str]) -> Outcome:
    """Run ``attempt``, which returns a detail; the reason of its OSError or MemtraceError makes it missing."""
    try:
        return Outcome("ok", attempt())
    except OSError as error:
        return Outcome("missing", error.strerror or str(error))
    except MemtraceError as error:
        return Outcome("missing", error.cause)
