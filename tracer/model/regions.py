"""Growth per VMA between two looks, although the kernel merges and splits VMAs at will.

VMAs that overlap from one look to the other are one region: a VMA that grew, was split, or was merged with its
neighbours is compared as a whole. Each VMA is in exactly one region, so that the growth of the regions adds up to the
growth of the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from tracer.model.classes import ANONYMOUS
from tracer.model.vma import VmaUsage
from tracer.model.watch import RegionChange

Amount = Callable[[VmaUsage], int]


def occupied(usage: VmaUsage) -> int:
    """Bytes that a VMA takes: in memory, or swapped out.

    What is swapped out of shared memory belongs to the object and not to its mappings; smaps shows it, pagemap does
    not, VmSwap does not count it: neither does this.
    """
    return usage.rss + (usage.swap if usage.vma.perms.endswith("p") else 0)


def private(usage: VmaUsage) -> int:
    """Bytes that only this process holds and that cannot be dropped: Private_Dirty + Swap (from smaps)."""
    return usage.private_dirty + usage.swap


def totals_by_class(usages: Sequence[VmaUsage], classes: Mapping[int, str], amount: Amount) -> dict[str, int]:
    """Classes to the sum of ``amount`` over their VMAs; ``classes`` is by start address."""
    totals: dict[str, int] = {}
    for usage in usages:
        name = classes.get(usage.vma.start, ANONYMOUS)
        totals[name] = totals.get(name, 0) + amount(usage)
    return totals


def compare(
    before: Sequence[VmaUsage], after: Sequence[VmaUsage], classes: Mapping[int, str], *, with_private: bool
) -> list[RegionChange]:
    """All regions, in the order of addresses; ``classes`` is by start address, of both looks.

    ``with_private`` says that both looks are from smaps. A region that is gone shows what it was, with nothing in it.
    """
    return [_change(old, new, classes, with_private) for old, new in _regions(before, after)]


def _regions(before: Sequence[VmaUsage], after: Sequence[VmaUsage]) -> Iterator[tuple[list[VmaUsage], list[VmaUsage]]]:
    """The VMAs of both looks, gathered while they overlap."""
    tagged = sorted(
        [(usage.vma.start, 0, usage) for usage in before] + [(usage.vma.start, 1, usage) for usage in after],
        key=lambda item: item[:2],
    )
    region: tuple[list[VmaUsage], list[VmaUsage]] = ([], [])
    end = 0
    for start, side, usage in tagged:
        if start >= end and (region[0] or region[1]):
            yield region
            region = ([], [])
        region[side].append(usage)
        end = max(end, usage.vma.end)
    if region[0] or region[1]:
        yield region


def _change(
    old: Sequence[VmaUsage], new: Sequence[VmaUsage], classes: Mapping[int, str], with_private: bool
) -> RegionChange:
    shown = new or old
    main = max(shown, key=lambda usage: (occupied(usage), usage.vma.size))
    return RegionChange(
        start=min(usage.vma.start for usage in shown),
        end=max(usage.vma.end for usage in shown),
        perms=main.vma.perms,
        path=main.vma.path,
        vma_class=classes.get(main.vma.start, ANONYMOUS),
        before=sum(map(occupied, old)),
        after=sum(map(occupied, new)),
        private_growth=sum(map(private, new)) - sum(map(private, old)) if with_private else None,
        vmas=len(new),
    )
