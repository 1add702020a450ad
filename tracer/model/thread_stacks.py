"""Which addresses are the stacks of which threads, also where the kernel shows several stacks as one VMA.

glibc maps a thread's stack with a guard at its lower end and puts struct pthread at its upper end
(nptl/allocatestack.c, nptl/descr.h). Up to 2.41 the guard is a VMA of its own without permissions; from 2.42 it is a
marker in the page tables (MADV_GUARD_INSTALL), and stacks that touch are one VMA. Stacks of threads that have ended
are kept for later ones.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct, unpack_from

from tracer.model.class_names import GUARD, THREAD_STACK, ClassRange
from tracer.model.heap_signs import ReadMemory
from tracer.model.vma import Vma

# The guard markers between two addresses as (start, end), ascending.
FindGuards = Callable[[int, int], Sequence[tuple[int, int]]]

_PAGE = 4096
# A stack that shows no other sign than a thread's stack pointer in it is taken for one up to this size.
_MAX_PLAIN = 16 << 20
# So far above a stack pointer its thread's block is looked for: most threads that wait do so near the top.
_MAX_DEPTH = 256 << 10
_MIN_STACK = 16 << 10  # PTHREAD_STACK_MIN
# Below it nothing is mapped (vm.mmap_min_addr): a small number, as a tid is, begins no stack.
_LOWEST_STACK = 64 << 10
# x86-64, struct pthread (2.3 kB): begins with its own address and, 16 bytes on, again; then a list, and the tid.
_HEADER, _SELF_AGAIN, _TID = 704, 16, 720
_BLOCK_SIZE = 2304
_WORD = Struct("<Q")


@dataclass(frozen=True, slots=True)
class Thread:
    """A live thread. ``local_tid`` is its id in its own PID namespace, ``stack_pointer`` None where it runs."""

    tid: int
    local_tid: int
    name: str
    stack_pointer: int | None = None

    @property
    def label(self) -> str:
        """The id and the name, which its owner made up."""
        return f"tid {self.tid} {self.name}".rstrip()


@dataclass(frozen=True, slots=True)
class ThreadBlock:
    """A struct pthread: where it is, whose it is (0 where the thread has ended), and its stack, where it says so.

    ``stack`` is (start, end), page-aligned, with the guard of ``guard_size`` bytes at its start.
    """

    address: int
    local_tid: int
    stack: tuple[int, int] | None = None
    guard_size: int = 0


class StackFinder:
    """Finds the thread stacks in a VMA; pure but for the reading of the target's memory that it is given."""

    def __init__(self, threads: Sequence[Thread], read: ReadMemory | None, guards: FindGuards | None) -> None:
        """``read`` and ``guards`` are None where the kernel does not tell."""
        self._read = read
        self._guards = guards
        self._by_local_tid = {thread.local_tid: thread for thread in threads}
        placed = sorted((t.stack_pointer, t.tid, t) for t in threads if t.stack_pointer is not None)
        self._pointers = [pointer for pointer, _, _ in placed]
        self._placed = [thread for _, _, thread in placed]

    def threads_within(self, start: int, end: int) -> list[Thread]:
        """The threads whose stack pointer is between two addresses."""
        return self._placed[bisect_left(self._pointers, start) : bisect_left(self._pointers, end)]

    def may_hold(self, vma: Vma, flags: tuple[str, ...], has_guard: bool) -> bool:
        """Whether to look into a VMA of unnamed memory; ``has_guard`` where one without permissions is below it."""
        if "w" not in vma.perms:
            return False
        has_sign = has_guard or "nh" in flags or "gu" in flags
        return (has_sign and vma.size >= _MIN_STACK - _PAGE) or bool(self.threads_within(vma.start, vma.end))

    def find(self, vma: Vma, flags: tuple[str, ...], has_guard: bool) -> list[ClassRange]:
        """The stacks in a VMA, and the guards among them, in no order."""
        found: list[ClassRange] = []
        end = vma.end
        # Stacks that touch are walked from the top, where each has its block.
        while end > vma.start and (block := self._block_below(end, vma.start)):
            start = self._start_of(block, vma, end)
            found += self._of_block(block, start, end, flags)
            end = start
        if end > vma.start:
            rest = Vma(vma.start, end, vma.perms, 0, vma.device, 0, b"")
            found += self._without_block(rest, flags, has_guard)
        return found

    def _by_pointers(self, vma: Vma, inside: Sequence[Thread], flags: tuple[str, ...]) -> list[ClassRange]:
        """Stacks amid other memory, as programs map them: their blocks are above the stack pointers."""
        found: list[ClassRange] = []
        for thread in inside:
            lowest = (thread.stack_pointer or 0) & -_PAGE
            for end in range(lowest + _PAGE, min(vma.end, lowest + _MAX_DEPTH) + 1, _PAGE):
                block = self._block_below(end, end - _PAGE)
                if block is not None and block.stack is not None:
                    start, stop = max(vma.start, block.stack[0]), min(vma.end, block.stack[1])
                    found += self._of_block(block, start, stop, flags)
                if block is not None:
                    break
        return found

    def _block_below(self, end: int, lowest: int) -> ThreadBlock | None:
        start = max(lowest, end - _PAGE)
        page = self._read(start, end - start) if self._read is not None else None
        return parse_thread_block(page, start) if page is not None else None

    def _start_of(self, block: ThreadBlock, vma: Vma, end: int) -> int:
        if block.stack is not None and block.stack[0] < end:
            return max(vma.start, block.stack[0])
        marks = self._guards(vma.start, end) if self._guards is not None else ()
        return marks[-1][0] if marks else vma.start

    def _of_block(self, block: ThreadBlock, start: int, end: int, flags: tuple[str, ...]) -> list[ClassRange]:
        thread = self._by_local_tid.get(block.local_tid) if block.local_tid else None
        detail = thread.label if thread is not None else "unused" if not block.local_tid else ""
        guard = start
        # A guard that is a VMA of its own is not in this one; else its owner may have dropped it.
        if block.stack is not None and block.stack[0] == start and "gu" in flags:
            guard = min(end, start + block.guard_size)
        ranges = [ClassRange(guard, end, THREAD_STACK, detail)]
        return [ClassRange(start, guard, GUARD, detail), *ranges] if start < guard else ranges

    def _without_block(self, vma: Vma, flags: tuple[str, ...], has_guard: bool) -> list[ClassRange]:
        """By guard markers, by the kernel's flag for MAP_STACK, or by stack pointers alone."""
        marks = self._guards(vma.start, vma.end) if self._guards is not None and "gu" in flags else ()
        inside = self.threads_within(vma.start, vma.end)
        # "nh" is VM_NOHUGEPAGE: since kernel 6.7 of MAP_STACK, but of madvise(MADV_NOHUGEPAGE) as well.
        is_stack = "nh" in flags and (has_guard or "gu" in flags)
        if marks and (is_stack or inside):
            return split_at_guards(vma.start, vma.end, marks, inside, whole=has_guard)
        if not is_stack and (known := self._by_pointers(vma, inside, flags)):
            return known
        if is_stack or (inside and (has_guard or vma.size <= _MAX_PLAIN)):
            return [ClassRange(vma.start, vma.end, THREAD_STACK, label_of(inside))]
        return []


def split_at_guards(
    start: int, end: int, guards: Sequence[tuple[int, int]], threads: Sequence[Thread], *, whole: bool
) -> list[ClassRange]:
    """Stacks between two addresses, each with a guard at its lower end, by the threads' stack pointers.

    What is below the first guard is a stack only where a thread is in it, or where it is ``whole`` by a guard below.
    """
    starts = [low for low, _ in guards]
    in_slot: dict[int, list[Thread]] = {}
    for thread in threads:
        in_slot.setdefault(bisect_right(starts, thread.stack_pointer or 0), []).append(thread)
    found: list[ClassRange] = []
    first = guards[0][0] if guards else end
    if start < first and (whole or in_slot.get(0)):
        found.append(ClassRange(start, first, THREAD_STACK, label_of(in_slot.get(0, []))))
    for index, (low, high) in enumerate(guards, 1):
        label = label_of(in_slot.get(index, []))
        stop = guards[index][0] if index < len(guards) else end
        found.append(ClassRange(low, high, GUARD, label))
        if high < stop:
            found.append(ClassRange(high, stop, THREAD_STACK, label))
    return found


def label_of(threads: Sequence[Thread]) -> str:
    """One thread with its name, or several by their ids."""
    if len(threads) == 1:
        return threads[0].label
    return f"tids {', '.join(str(thread.tid) for thread in threads)}" if threads else ""


def parse_thread_block(page: bytes, base: int) -> ThreadBlock | None:
    """The struct pthread in the upper page of a stack (x86-64), known by its own address, which it holds twice."""
    # All of a page's addresses but the lowest 12 bits are alike: look for these bytes rather than at each place.
    common = _WORD.pack(base)[2:]
    at = page.find(common)
    while at >= 0:
        offset = at - 2
        own = _WORD.pack(base + offset) if offset >= 0 else b""
        if offset % 16 == 0 and page[offset : offset + 8] == own == page[offset + _SELF_AGAIN : offset + 24]:
            return _block_at(page, base, offset)
        at = page.find(common, at + 1)
    return None


def _block_at(page: bytes, base: int, offset: int) -> ThreadBlock:
    address = base + offset
    tid = unpack_from("<i", page, offset + _TID)[0] if offset + _TID + 4 <= len(page) else 0
    stop = min(len(page), offset + _BLOCK_SIZE) & -8
    words = [word for (word,) in _WORD.iter_unpack(page[offset + _HEADER : stop])]
    # stackblock, stackblock_size and guardsize follow one another; where, depends on glibc's version.
    for start, size, guard in zip(words, words[1:], words[2:], strict=False):
        end = start + size
        if size >= _MIN_STACK and _LOWEST_STACK <= start < address < end <= address + 2 * _PAGE:
            guard_size = guard if guard % _PAGE == 0 and guard < size else 0
            return ThreadBlock(address, max(0, tid), (start & -_PAGE, (end + _PAGE - 1) & -_PAGE), guard_size)
    return ThreadBlock(address, max(0, tid))
