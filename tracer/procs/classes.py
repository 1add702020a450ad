"""The one place where a process's mappings are sorted into classes of memory for views of many processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tracer.errors import MemtraceError
from tracer.model.classes import ReadMemory, classify_all
from tracer.model.vma import VmaUsage
from tracer.procfs.memory import MemoryReader
from tracer.procfs.pagemap import Residency


def classified(usages: Sequence[VmaUsage], read_memory: ReadMemory | None = None) -> Iterator[tuple[str, VmaUsage]]:
    """Each mapping, in the order of maps, with its class."""
    classes = classify_all([(usage.vma, usage.flags) for usage in usages], read_memory)
    for usage in usages:
        yield classes[usage.vma.start], usage


@contextmanager
def live_memory(pid: int) -> Iterator[ReadMemory | None]:
    """The memory of a process of this machine, of which only what is resident is read; None where it may not be."""
    try:
        residency = Residency(pid)
    except MemtraceError:
        yield None
        return
    with residency, MemoryReader(pid, residency) as memory:
        yield memory


@contextmanager
def no_memory(_pid: int) -> Iterator[ReadMemory | None]:
    """For processes of a capture: their memory is not in it."""
    yield None
