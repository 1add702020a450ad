"""Puts the malloc-family probes into a process, and takes them out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tracer.heap.allocators import AllocShape, ProbeSite
from tracer.heap.discovery import FoundImage
from tracer.probes import kernel
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


@dataclass(slots=True)
class MallocProbes:
    """The probes of one session. ``failed`` names each function that could not be probed, and why."""

    program: Program
    pid: int
    attached: int = 0
    failed: list[str] = field(default_factory=list)
    uses_links: bool = False
    _descriptors: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.uses_links = supports_uprobe_multi(self.program)
        self.program.set_tail_call("call_programs", self._load("call_enters"))
        self.program.set_tail_call("unwind_uprobe_programs", self._load("unwind_uprobe"))

    def _load(self, function: str) -> int:
        return self.program.load(function, "KPROBE", kernel.BPF_TRACE_UPROBE_MULTI if self.uses_links else -1)

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
            self._attach_group(image, function, sites, on_return=on_return)
        return self.attached - before

    def _attach_group(self, image: FoundImage, function: str, sites: Sequence[ProbeSite], *, on_return: bool) -> None:
        fd = self._load(function)
        if (
            self.uses_links
            and self._try(
                lambda: kernel.link_uprobes(
                    fd, image.map_file, [site.file_offset for site in sites], self.pid, on_return=on_return
                ),
                sites,
            )
            is None
        ):
            return
        # One by one: a single place that cannot be probed must not cost the others.
        for site in sites:
            error = self._try(lambda site=site: self._attach_one(fd, image, site, on_return), [site])  # type: ignore[misc]
            if error is not None:
                self.failed.append(f"{site.symbol} in {image.path} ({site.kind}): {error.strerror}")

    def _attach_one(self, fd: int, image: FoundImage, site: ProbeSite, on_return: bool) -> int:
        if self.uses_links:
            return kernel.link_uprobes(fd, image.map_file, [site.file_offset], self.pid, on_return=on_return)
        return kernel.open_perf_uprobe(fd, image.map_file, site.file_offset, self.pid, on_return=on_return)

    def _try(self, attach: Callable[[], int], sites: Sequence[ProbeSite]) -> OSError | None:
        try:
            self._descriptors.append(attach())
        except OSError as error:
            return error
        self.attached += len(sites)
        return None

    def close(self) -> None:
        """Detach. Safe to call twice."""
        kernel.close_all(self._descriptors)


def _order(site: ProbeSite) -> tuple[int, str, bool]:
    if site.kind != "entry":
        return 1, "call_returns", site.kind == "return"
    function = _ENTRY_PROGRAMS[site.shape]
    return (0 if function == _RELEASING else 2), function, False
