"""Puts the malloc-family probes into a process, and takes them out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from tracer.heap.allocators import AllocShape, ProbeSite
from tracer.heap.discovery import FoundImage
from tracer.probes import kernel
from tracer.probes.holder import ProbeHolder
from tracer.probes.program import Program, supports_uprobe_multi

_ENTRY_PROGRAMS = {
    AllocShape.MALLOC: "enter_malloc",
    AllocShape.CALLOC: "enter_calloc",
    AllocShape.REALLOC: "enter_realloc",
    AllocShape.REALLOCARRAY: "enter_reallocarray",
    AllocShape.MEMALIGN: "enter_memalign",
    AllocShape.POSIX_MEMALIGN: "enter_posix_memalign",
    AllocShape.FREE: "enter_free",
    AllocShape.NEW: "enter_new",
    AllocShape.DELETE: "enter_free",
}
_RELEASING = "enter_free"


class MallocProbes:
    """The probes on the allocators of one program image. ``failed`` names each that could not be placed, and why."""

    def __init__(self, program: Program, holder: ProbeHolder, pid: int) -> None:
        """Load what all allocation probes go on to. Raises KernelError."""
        self._group = holder.new_group()
        self._program = program
        self._holder = holder
        self._pid = pid
        self._by_link = supports_uprobe_multi(program)
        self.attached = 0
        self.failed: list[str] = []
        program.set_tail_call("call_programs", self._load("call_enters"))
        program.set_tail_call("unwind_uprobe_programs", self._load("unwind_uprobe"))

    def _load(self, function: str) -> int:
        return self._program.load(function, "KPROBE", kernel.BPF_TRACE_UPROBE_MULTI if self._by_link else -1)

    def attach(self, image: FoundImage) -> int:
        """Probe an image's allocator; returns how many places are probed now. Failures go to ``failed``.

        What frees is attached first and what returns before what enters, so that no probe sees a block whose free,
        or a call whose return, would be missed.
        """
        if image.allocator is None:
            return 0
        before = self.attached
        groups: dict[tuple[int, str, bool], list[ProbeSite]] = defaultdict(list)
        for site in image.allocator.sites:
            groups[_order(site)].append(site)
        for (_, function, on_return), sites in sorted(groups.items(), key=lambda item: item[0]):
            program_fd = self._load(function)
            if self._by_link and self._place(program_fd, image, sites, on_return) is None:
                continue
            # One by one: a single place that cannot be probed must not cost the others.
            for site in sites:
                error = self._place(program_fd, image, [site], on_return)
                if error is not None:
                    self.failed.append(f"{site.symbol} in {image.path} ({site.kind}): {error.strerror}")
        return self.attached - before

    def _place(self, program_fd: int, image: FoundImage, sites: Sequence[ProbeSite], on_return: bool) -> OSError | None:
        offsets = [site.file_offset for site in sites]
        try:
            self._holder.attach(
                self._group,
                program_fd,
                image.map_file,
                offsets,
                self._pid,
                on_return=on_return,
                by_link=self._by_link,
            )
        except OSError as error:
            return error
        self.attached += len(sites)
        return None

    def close(self) -> None:
        """Detach. Safe to call twice."""
        self._holder.release(self._group)


def _order(site: ProbeSite) -> tuple[int, str, bool]:
    if site.kind != "entry":
        return 1, "call_returns", site.kind == "return"
    function = _ENTRY_PROGRAMS[site.shape]
    return (0 if function == _RELEASING else 2), function, False
