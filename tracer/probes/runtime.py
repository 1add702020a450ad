"""How long our BPF programs run, by the kernel's own clock (BPF_ENABLE_STATS, Linux 5.8)."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tracer.probes import kernel
from tracer.probes.program import Program

_FIELDS = re.compile(r"^run_(time_ns|cnt):\s*(\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class RunTime:
    """What a program took: nanoseconds, and how often it ran, for whichever process."""

    ns: int = 0
    runs: int = 0


class RunTimes:
    """Times our programs between ``begin`` and ``end``; meanwhile every BPF program on the machine takes 40 ns more."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._switch = -1
        self._before: dict[str, RunTime] = {}

    @property
    def running(self) -> bool:
        """Whether the programs are timed now."""
        return self._switch >= 0

    def begin(self) -> None:
        """Start the clock; without effect where the kernel has none."""
        with suppress(OSError):
            self._switch = kernel.enable_run_times()
            self._before = self._read()

    def end(self) -> dict[str, RunTime]:
        """What each program took since ``begin``, by its name; empty where the kernel does not tell."""
        if not self.running:
            return {}
        now = self._read()
        self.close()
        none = RunTime()
        return {
            name: RunTime(time.ns - self._before.get(name, none).ns, time.runs - self._before.get(name, none).runs)
            for name, time in now.items()
        }

    def _read(self) -> dict[str, RunTime]:
        times = {}
        for name, fd in self._program.loaded.items():
            fields = dict(_FIELDS.findall(Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")))
            times[name] = RunTime(int(fields.get("time_ns", 0)), int(fields.get("cnt", 0)))
        return times

    def close(self) -> None:
        """Stop the clock. Safe to call twice."""
        if self._switch >= 0:
            os.close(self._switch)
            self._switch = -1
