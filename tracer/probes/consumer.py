"""Turns what the BPF programs left in maps and the ring buffer into the model's data."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from tracer.model.blocks import Blocks
from tracer.model.events import Mapped, Protected, Remapped, Remapping, RssChange, Unmapped, VmaEvent
from tracer.model.vma import RssCounters
from tracer.probes import layout
from tracer.probes.layout import Event, EventKind, RssCause, StackStatus, Totals
from tracer.probes.program import Program

_MAP_SHARED_TYPES = 0x03  # MAP_SHARED 1, MAP_SHARED_VALIDATE 3; MAP_PRIVATE is 2
_MAP_PRIVATE = 0x02
_MAP_ANONYMOUS = 0x20
_MREMAP_DONTUNMAP = 4
_ERRNO_MAX = 4095
_U64 = 1 << 64
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
            return Unmapped(event.address, event.length)
        case EventKind.REMAP_ENTER:
            keep = _keeps_old(event)
            return Remapping(event.tid, event.old_address, event.old_length, keep)
        case EventKind.REMAP:
            failed = event.address >= _U64 - _ERRNO_MAX
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


def _mapped(event: Event) -> Mapped:
    private = event.flags & _MAP_SHARED_TYPES == _MAP_PRIVATE
    return Mapped(
        event.time_ns,
        event.address,
        event.length,
        _perms(event.prot) + ("p" if private else "s"),
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
        for (stack, page, member, cause), (amount, _events) in pairs:
            yield RssChange(stack, page, layout.RSS_MEMBERS[member], _CAUSES[cause], amount)


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
