"""Puts the malloc-family probes into a process, and takes them out: for good, or for a while."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tracer.heap.allocators import AllocShape, ProbeSite
from tracer.heap.discovery import FoundImage
from tracer.heap.placement import is_emulated
from tracer.probes import kernel
from tracer.probes.holder import ProbeHolder
from tracer.probes.layout import CallShape
from tracer.probes.program import Program

_ENTRY_PROGRAMS = {
    AllocShape.MALLOC: "enter_malloc",
    AllocShape.CALLOC: "enter_calloc",
    AllocShape.REALLOC: "enter_realloc",
    AllocShape.REALLOCARRAY: "enter_reallocarray",
    AllocShape.MEMALIGN: "enter_memalign",
    AllocShape.POSIX_MEMALIGN: "enter_posix_memalign",
    AllocShape.FREE: "enter_free",
    AllocShape.DELETE: "enter_free",
}
_RELEASING = "enter_free"
_RETURNING = "call_returns"
# Never by a session, whose kernel side would put a return probe on a function that may throw (bpf/alloc.bpf.c).
_THROWING = {"entry": "enter_new", "ret-instruction": "new_returns"}
_SESSION = "session_call"
# malloc itself, under its names: it calls no other function of the family.
_LEAF = re.compile(r"(?:__libc_|__|je_|_rjem_|tc_|mi_)?malloc(?:_impl|x)?")
_LONGEST_INSTRUCTION = 15


@dataclass(frozen=True, slots=True)
class _Group:
    """Places of one file that one program is put on. ``cookies`` make it a session, else it is one kind of probe."""

    function: str
    on_return: bool
    path: str
    image: str
    sites: tuple[ProbeSite, ...]
    cookies: tuple[int, ...] = ()

    @property
    def order(self) -> int:
        """What frees goes first and what returns before what enters, so that no probe misses its counterpart."""
        return {_RELEASING: 0, _RETURNING: 1, _THROWING["ret-instruction"]: 1}.get(self.function, 2)


class MallocProbes:
    """The probes on the allocators of one program image. ``failed`` names each that could not be placed, and why.

    ``stepped_allocations`` and ``stepped_frees`` tell whether malloc or free is probed at an instruction that the
    kernel has to single-step, which costs ten times as much.
    """

    def __init__(self, program: Program, holder: ProbeHolder, pid: int) -> None:
        """Load what all allocation probes go on to. Raises KernelError."""
        self._held = holder.new_group()
        self._program = program
        self._holder = holder
        self._pid = pid
        self._by_link = program.has_sessions
        self._groups: list[_Group] = []
        self._files: list[int] = []
        self.is_on = True
        self.failed: list[str] = []
        self.stepped_allocations = self.stepped_frees = False
        # What goes on by tail calls has the type of where it comes from.
        self._session = kernel.BPF_TRACE_UPROBE_SESSION if self._by_link else 0
        self._plain = kernel.BPF_TRACE_UPROBE_MULTI if self._by_link else 0
        program.set_tail_call("call_programs", program.load("call_enters", "KPROBE", self._session))
        program.set_tail_call("unwind_uprobe_programs", program.load("unwind_uprobe", "KPROBE", self._session))
        self._plain_is_ready = not self._by_link

    def attach(self, image: FoundImage) -> int:
        """Probe an image's allocator; returns how many places are probed. Failures go to ``failed``."""
        if image.allocator is None:
            return 0
        try:
            file = os.open(image.map_file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.failed.append(f"{image.path}: {error.strerror}")
            return 0
        self._files.append(file)
        self._look_at_instructions(file, image.allocator.sites)
        # The mapping may be split later, and its name in map_files with it: the open file stays.
        path = f"/proc/{os.getpid()}/fd/{file}"
        placed = 0
        for group in sorted(self._groups_of(image, path), key=lambda group: group.order):
            good = self._tried(group)
            self._groups += good
            placed += sum(len(part.sites) for part in good)
        return placed

    def _groups_of(self, image: FoundImage, path: str) -> list[_Group]:
        assert image.allocator is not None
        by_program: dict[tuple[str, bool], list[ProbeSite]] = defaultdict(list)
        if any(site.shape is AllocShape.NEW for site in image.allocator.sites):
            self._make_plain_ready()
        for site in image.allocator.sites:
            # A session's program runs at the return as well.
            if not (self._by_link and site.kind == "return"):
                by_program[self._program_of(site)].append(site)
        for sites in by_program.values():
            sites.sort(key=lambda site: site.kind == "entry")
        return [
            _Group(function, on_return, path, image.path, tuple(sites), self._cookies(function, sites))
            for (function, on_return), sites in by_program.items()
        ]

    def _make_plain_ready(self) -> None:
        """Load what plain probes go on to beside sessions; only where it is needed, as it takes its time."""
        if self._plain_is_ready:
            return
        self._plain_is_ready = True
        program, kind = self._program, self._plain
        program.set_tail_call("plain_call_programs", program.load("plain_call_enters", "KPROBE", kind))
        program.set_tail_call("unwind_plain_programs", program.load("unwind_plain_uprobe", "KPROBE", kind))

    def _program_of(self, site: ProbeSite) -> tuple[str, bool]:
        if site.shape.releases_only:
            return _RELEASING, False
        if site.shape is AllocShape.NEW:
            return _THROWING[site.kind], False
        if self._by_link:
            return _SESSION, False
        if site.kind == "return":
            return _RETURNING, True
        leaf_or_not = "enter_valloc" if _shape_of(site) is CallShape.VALLOC else _ENTRY_PROGRAMS[site.shape]
        return leaf_or_not, False

    def _cookies(self, function: str, sites: Sequence[ProbeSite]) -> tuple[int, ...]:
        return tuple(_shape_of(site) for site in sites) if function == _SESSION else ()

    def _tried(self, group: _Group) -> list[_Group]:
        """Place a group; where that fails, its places one by one: a single one must not cost the others."""
        if not self.is_on or (self._by_link and self._place(group) is None):
            return [group]
        good = []
        for index, site in enumerate(group.sites):
            one = _Group(
                group.function, group.on_return, group.path, group.image, (site,), group.cookies[index : index + 1]
            )
            error = self._place(one)
            if error is None:
                good.append(one)
            else:
                self.failed.append(f"{site.symbol} in {group.image} ({site.kind}): {error.strerror}")
        return good

    def _place(self, group: _Group) -> OSError | None:
        kind = self._session if group.cookies else self._plain
        try:
            self._holder.attach(
                self._held,
                self._program.load(group.function, "KPROBE", kind),
                group.path,
                [site.file_offset for site in group.sites],
                self._pid,
                on_return=group.on_return,
                by_link=self._by_link,
                cookies=group.cookies,
            )
        except OSError as error:
            return error
        return None

    def _look_at_instructions(self, file: int, sites: Sequence[ProbeSite]) -> None:
        for site in sites:
            if site.kind == "entry" and site.shape in (AllocShape.MALLOC, AllocShape.FREE):
                stepped = not is_emulated(os.pread(file, _LONGEST_INSTRUCTION, site.file_offset))
                if site.shape is AllocShape.FREE:
                    self.stepped_frees |= stepped
                else:
                    self.stepped_allocations |= stepped

    def suspend(self) -> None:
        """Take the probes out; ``resume`` puts them back."""
        self.is_on = False
        self._holder.release(self._held)

    def resume(self) -> None:
        """Put all probes back that were there. What fails now (the process ends) goes to ``failed``."""
        self.is_on = True
        for group in sorted(self._groups, key=lambda group: group.order):
            error = self._place(group)
            if error is not None:
                self.failed.append(f"{group.image} ({group.function}): {error.strerror}")

    def close(self) -> None:
        """Detach. Safe to call twice."""
        self._holder.release(self._held)
        while self._files:
            os.close(self._files.pop())


def _shape_of(site: ProbeSite) -> CallShape:
    if site.shape is AllocShape.MALLOC:
        return CallShape.MALLOC if _LEAF.fullmatch(site.symbol) else CallShape.VALLOC
    return CallShape[site.shape.name]
