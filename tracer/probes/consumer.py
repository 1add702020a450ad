"""Turns what the BPF programs left in maps and the ring buffer into the model's data."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from tracer.model.blocks import Blocks
from tracer.model.events import (
    Attached,
    Detaching,
    Kept,
    Mapped,
    Protected,
    Remapped,
    Remapping,
    RssChange,
    Unmapped,
    VmaEvent,
)
from tracer.model.vma import RssCounters
from tracer.probes import layout
from tracer.probes.calls import call_name
from tracer.probes.layout import Event, EventKind, RssCause, StackStatus, Totals
from tracer.probes.program import Program

# include/uapi/linux/mman.h: the kinds of mappings that are shared are MAP_SHARED and MAP_SHARED_VALIDATE.
_MAP_TYPE, _MAP_SHARED_TYPES = 0x0F, (0x01, 0x03)
_MAP_ANONYMOUS = 0x20
# The size of huge pages stands in the flags as its logarithm; 2 MiB where it does not, unless the machine has others.
_MAP_HUGETLB, _HUGE_SHIFT, _HUGE_MASK, _HUGE_DEFAULT = 0x40000, 26, 0x3F, 21
_MREMAP_FIXED, _MREMAP_DONTUNMAP = 2, 4
_ERRNO_MAX = 4095
_U64 = 1 << 64
# enum rss_cause: a system call's number lies beside RSS_OTHER_CALL.
_CAUSE_MASK, _CALL_SHIFT = 0xFF, 8
_CAUSES = {int(cause): cause.name.lower() for cause in RssCause}


@dataclass(frozen=True, slots=True)
class RawStack:
    """A stack as taken: addresses, innermost first, and its status bits."""

    ips: tuple[int, ...]
    status: int

    @property
    def complete(self) -> bool:
        """Whether the walk reached to where the thread began."""
        return bool(self.status & StackStatus.COMPLETE)


def decode_event(event: Event) -> VmaEvent | None:
    """The change of the address space that an event tells of; None for those that tell of none (madvise, exec)."""
    match event.kind:
        case EventKind.MAP:
            return _mapped(event)
        case EventKind.UNMAP:
            return Unmapped(event.address, event.length, event.tid)
        case EventKind.ATTACH:
            perms = _perms(event.prot) + "s"
            in_allocator = bool(event.in_allocator)
            return Attached(event.time_ns, event.address, event.old_address, perms, event.stack, in_allocator)
        case EventKind.DETACH:
            return Detaching(event.address, event.tid)
        case EventKind.KEPT:
            return Kept(event.tid)
        case EventKind.REMAP_ENTER:
            keep = _keeps_old(event)
            return Remapping(event.tid, event.old_address, event.old_length, keep)
        case EventKind.REMAP:
            failed = _has_failed(event)
            return Remapped(
                event.tid,
                event.old_address,
                event.old_length,
                None if failed else event.address,
                event.length,
                _keeps_old(event),
            )
        case EventKind.BRK_GROW:
            return Mapped(
                event.time_ns,
                event.address,
                event.length,
                "rw-p",
                False,
                0,
                event.stack,
                bool(event.in_allocator),
                "brk",
            )
        case EventKind.PROTECT:
            return Protected(event.address, event.length, _perms(event.prot))
    return None


def needs_resync(event: Event) -> bool:
    """Whether what an event tells of may have changed more of the address space than it says.

    An mremap to a fixed place unmaps what is there before it is sure to succeed.
    """
    if event.kind == EventKind.REMAP:
        return _has_failed(event) and bool(event.flags & _MREMAP_FIXED)
    return event.kind == EventKind.RESYNC


def _has_failed(event: Event) -> bool:
    return event.address >= _U64 - _ERRNO_MAX


def _mapped(event: Event) -> Mapped:
    shared = event.flags & _MAP_TYPE in _MAP_SHARED_TYPES
    length = event.length
    if event.flags & _MAP_HUGETLB:
        huge_page = 1 << (event.flags >> _HUGE_SHIFT & _HUGE_MASK or _HUGE_DEFAULT)
        length = (length + huge_page - 1) & -huge_page
    return Mapped(
        event.time_ns,
        event.address,
        length,
        _perms(event.prot) + ("s" if shared else "p"),
        not event.flags & _MAP_ANONYMOUS,
        event.offset,
        event.stack,
        bool(event.in_allocator),
        "mmap",
    )


def _keeps_old(event: Event) -> bool:
    return bool(event.flags & _MREMAP_DONTUNMAP)


def _perms(prot: int) -> str:
    return "".join(letter if prot >> bit & 1 else "-" for bit, letter in enumerate("rwx"))


def brings_code(event: Event) -> bool:
    """Whether an event may have brought new code into the process: a library, a plug-in, a JIT's output."""
    return event.kind in (EventKind.MAP, EventKind.PROTECT) and bool(event.prot & 4)


def read_totals(program: Program, epoch: int) -> dict[int, Totals]:
    """What each stack has allocated and freed since tracing (or the last exec) began."""
    totals: dict[int, Totals] = {}
    for keys, values in program.map("totals").read():
        pairs = zip(layout.TOTALS_KEY.iter_unpack(keys), layout.TOTALS_VALUE.iter_unpack(values), strict=True)
        for (stack, of_epoch), value in pairs:
            if of_epoch == epoch:
                totals[stack] = Totals.unpacked(value)
    return totals


def read_live(program: Program, epoch: int) -> Blocks:
    """All live blocks of the program that runs now. Columns throughout: there may be a million."""
    addresses, *columns = (array("Q") for _ in range(5))
    width = len(columns)
    for keys, values in program.map("live").read():
        key_words, value_words = array("Q", keys), array("Q", values)
        owners = key_words[1::2]
        if all(owner >> 32 == epoch for owner in set(owners)):
            addresses.extend(key_words[0::2])
            for position, column in enumerate(columns):
                column.extend(value_words[position::width])
            continue
        for index in (i for i, owner in enumerate(owners) if owner >> 32 == epoch):
            addresses.append(key_words[2 * index])
            for position, column in enumerate(columns):
                column.append(value_words[width * index + position])
    return Blocks(addresses, *columns)


def forget_other_epochs(program: Program, epoch: int) -> None:
    """Delete what belonged to the programs that the process ran before an exec."""
    for name, key_layout in (("live", layout.LIVE_KEY), ("totals", layout.TOTALS_KEY)):
        kernel_map = program.map(name)
        stale = [
            key_layout.pack(*key)
            for keys, _ in kernel_map.read()
            for key in key_layout.iter_unpack(keys)
            if key[-1] != epoch
        ]
        for key in stale:
            kernel_map.delete(key)


def drain_rss(program: Program) -> Iterator[RssChange]:
    """Take the sums of RSS changes out of the kernel."""
    for keys, values in program.map("rss_sums").drain():
        pairs = zip(layout.RSS_KEY.iter_unpack(keys), layout.RSS_VALUE.iter_unpack(values), strict=True)
        for key, (amount, pages) in pairs:
            yield _rss_change(key, amount, pages)


def unsummed_rss(program: Program, epoch: int) -> Iterator[RssChange]:
    """What the runs of page faults in progress changed that is in no sum yet; to be read once the kernel side stops."""
    for _, values in program.map("fault_runs").read():
        for run in layout.FAULT_RUN.iter_unpack(values):
            amount, pages = run[15:17]
            if amount and run[2] == epoch:
                yield _rss_change(run[10:15], amount, pages)


def _rss_change(key: tuple[int, ...], amount: int, pages: int) -> RssChange:
    stack, block, member, _shrinks, cause = key
    kind = cause & _CAUSE_MASK
    call = call_name(cause >> _CALL_SHIFT) if kind == RssCause.OTHER_CALL else ""
    return RssChange(stack, block, pages, layout.RSS_MEMBERS[member], _CAUSES[kind], amount, call)


def seed_rss(program: Program, counters: RssCounters) -> None:
    """Tell the kernel side the sizes from which the first changes are to be reckoned."""
    for index, member in enumerate(layout.RSS_MEMBERS):
        size = getattr(counters, member)
        program.map("rss_last").put(index.to_bytes(4, "little"), layout.RSS_LAST.pack(size, 1))


def last_rss(program: Program) -> RssCounters:
    """The RSS counters as the last events told them: after the target's end, its last state."""
    sizes: dict[str, int] = {}
    for index, member in enumerate(layout.RSS_MEMBERS):
        value = program.map("rss_last").get(index.to_bytes(4, "little"))
        sizes[member] = max(0, layout.RSS_LAST.unpack(value)[0]) if value else 0
    return RssCounters(**sizes)


def read_stack(program: Program, stack: int) -> RawStack | None:
    """The frames of a stack id; None where they found no place in the table of stacks."""
    value = program.map("stacks").get(stack.to_bytes(8, "little"))
    if value is None:
        return None
    depth, status = layout.STACK_HEAD.unpack_from(value)
    ips = array("Q", value[layout.STACK_HEAD.size : layout.STACK_HEAD.size + 8 * depth])
    return RawStack(tuple(ips), status)
