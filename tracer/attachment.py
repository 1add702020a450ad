"""All that is attached to the target, and what follows its code: probes, unwind tables and names for addresses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Self

from tracer.heap.code import AllocatorCode
from tracer.heap.discovery import Discovery, FoundImage
from tracer.model.report import RssSource
from tracer.model.vma import Vma
from tracer.probes.holder import ProbeHolder
from tracer.probes.malloc import MallocProbes
from tracer.probes.program import Program
from tracer.probes.tracepoints import attach_tracepoints
from tracer.probes.unwinding import UnwindTables
from tracer.procfs.maps import read_maps
from tracer.symbols.debuginfod import Debuginfod
from tracer.symbols.lines import LineReader
from tracer.symbols.resolver import Resolver
from tracer.unwind.access import UnwindSizes

# How long the start may wait for unwind tables: enough for what is cached or small; the rest comes while tracing.
_TABLES_AT_START_SECONDS = 2.0


class Attachment:
    """Attaches when entered and detaches when left. ``notes`` grows with what the user should know."""

    def __init__(
        self,
        program: Program,
        holder: ProbeHolder,
        pid: int,
        sizes: UnwindSizes,
        say: Callable[[str], None],
        rss_source: RssSource = "rss-stat",
    ) -> None:
        self.resolver = Resolver(
            pid, lines=LineReader.available(), debuginfod=Debuginfod.from_environment(os.environ, say)
        )
        self.notes: list[str] = []
        self.probed: list[str] = []
        self._program = program
        self._holder = holder
        self._pid = pid
        self._sizes = sizes
        self._say = say
        self._wanted_source = rss_source
        self._discovery = Discovery(pid)
        self._trampoline_known = False
        self._code = AllocatorCode()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Raises KernelError where the kernel refuses, TargetError where the process has ended."""
        with ExitStack() as stack:
            stack.callback(self.resolver.close)
            self._unwinding = stack.enter_context(UnwindTables(self._program, self._pid, self._sizes))
            self._tracepoints = attach_tracepoints(self._program, self._wanted_source)
            stack.callback(self._close_tracepoints)
            self.notes += self._tracepoints.missing
            self._malloc = MallocProbes(self._program, self._holder, self._pid)
            stack.callback(lambda: self._malloc.close())  # whichever it is then: exec makes a new one
            vmas = read_maps(self._pid)
            self._unwinding.start(vmas, _TABLES_AT_START_SECONDS)
            self._look_at(vmas, late=False)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def rss_source(self) -> RssSource:
        """How changes of RSS are traced."""
        return self._tracepoints.rss_source

    @property
    def failures(self) -> list[str]:
        """Each probe, file and unwind table that could not be had, and why."""
        untabled = [f"unwind tables: {count} {reason}" for reason, count in self._unwinding.losses().items()]
        return self._malloc.failed + self._discovery.unreadable + untabled

    @property
    def failed_probes(self) -> int:
        """How many probes could not be attached."""
        return len(self._malloc.failed)

    def follow_code(self, *, late: bool) -> None:
        """Take note of new code: names and unwind tables for its frames, and probes where it is an allocator."""
        vmas = read_maps(self._pid)
        self._unwinding.update(vmas)
        self._look_at(vmas, late=late)

    def _look_at(self, vmas: Sequence[Vma], *, late: bool) -> None:
        self.resolver.update(vmas)
        for image in self._discovery.look(vmas):
            self._probe(image, late=late)
            self._code.add(image, vmas)

    def _probe(self, image: FoundImage, *, late: bool) -> None:
        if image.is_go:
            self.note(
                f"{image.path} is a Go program: return probes would crash it, so its allocations are not traced; "
                "VMAs and page faults are"
            )
            return
        if image.allocator is None:
            return
        count = self._malloc.attach(image)
        for text in image.allocator.notes:
            self.note(text if text.startswith(image.allocator.name) else f"{image.allocator.name}: {text}")
        if count:
            name = f"{image.allocator.name} in {image.path}"
            self.probed.append(f"{name} ({count} places)")
            if late:
                self.note(f"{name} was loaded while tracing: what it allocated before is not known")
                self._say(f"now tracing: {name} ({count} places)")

    def in_allocator(self, ips: Sequence[int], *, by_brk: bool) -> bool:
        """Whether the stack of a system call that maps memory leads through a probed allocator."""
        return self._code.leads_through(ips, by_brk=by_brk)

    @property
    def stepped_allocations(self) -> bool:
        """Whether malloc is probed at an instruction that is single-stepped."""
        return self._malloc.stepped_allocations

    @property
    def stepped_frees(self) -> bool:
        """Whether free is probed at an instruction that is single-stepped."""
        return self._malloc.stepped_frees

    def suspend_malloc(self) -> None:
        """Take the malloc probes out until ``resume_malloc``."""
        self._malloc.suspend()

    def resume_malloc(self) -> None:
        """Put the malloc probes back."""
        self._malloc.resume()

    def follow_exec(self) -> None:
        """The process runs another program now: probe its allocators."""
        self._trampoline_known = False
        self.probed.clear()
        self._code = AllocatorCode()
        self._discovery = Discovery(self._pid)
        # The new probes come before the old ones go: a call seen by both counts once, one seen by neither is lost.
        before, self._malloc = self._malloc, MallocProbes(self._program, self._holder, self._pid)
        self.follow_code(late=False)
        before.close()

    def learn_trampoline(self) -> None:
        """Tell the unwinder where return probes divert to; that page is mapped at the first hit."""
        if self._trampoline_known:
            return
        vmas = read_maps(self._pid)
        if any(vma.path == b"[uprobes]" for vma in vmas):
            self._trampoline_known = True
            self._unwinding.update(vmas)

    def want_tables(self, addresses: Iterable[int]) -> None:
        """Stacks ended at these addresses for want of an unwind table: make those first."""
        self._unwinding.want(addresses)

    def note(self, text: str) -> None:
        """Keep a remark for the report, once."""
        if text not in self.notes:
            self.notes.append(text)

    def detach(self) -> None:
        """Take the probes out of the target. What the kernel side gathered can still be read."""
        self._malloc.close()
        self._close_tracepoints()

    def _close_tracepoints(self) -> None:
        # Nobody need wait for these: the programs know that they are switched off.
        self._holder.take_over(self._tracepoints.slow)
        self._tracepoints.close()
