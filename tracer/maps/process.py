"""The mappings of one process as a view shows them, with their totals; plain data, from any source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tracer.model.coded import Coded
from tracer.procfs.vma_table import VmaTable

_KIB = 1024
# Equal in smaps and its rollup if they are of the same moment, and if no other process has come or gone that shares.
_UNROUNDED = ("Rss", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Swap")

# Where the figures come from: every field; rss, anonymous and swap; sizes only.
Reader = Literal["smaps", "pagemap", "maps"]


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread whose stack a VMA holds; ``name`` is that of ``comm``, raw bytes decoded with surrogates."""

    tid: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class ProcessMaps:
    """A process and its VMAs, or those of them that were selected.

    ``threads`` has the threads whose stacks are in a VMA, by its start. ``rollup`` is smaps_rollup in bytes, None where
    it was not read; it is of the whole process. ``vma_count`` is of the whole process, too. ``torn`` is set where the
    process changed its mappings while they were read.
    """

    pid: int
    command: str
    user: str
    reader: Reader
    table: VmaTable
    classes: Coded[str]
    vma_count: int
    threads: Mapping[int, tuple[Thread, ...]] = field(default_factory=dict)
    rollup: Mapping[str, int] | None = None
    torn: bool = False
    notes: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """False where some VMAs were left out."""
        return len(self.table) == self.vma_count

    def take(self, rows: Sequence[int]) -> ProcessMaps:
        """The same process with these of its VMAs, in this order."""
        return replace(
            self,
            table=self.table.take(rows),
            classes=Coded([self.classes.ids[row] for row in rows], self.classes.values),
        )


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the VMAs shown, by the kernel's field names, in bytes.

    ``sums`` adds up what one read of smaps says, where each number is rounded down to a KiB. ``exact`` replaces in it
    what smaps_rollup knows without rounding: the shares of pages (Pss, Pss_Dirty, SwapPss, Locked). It equals ``sums``
    where there is no rollup of the same moment, and where only a part of the VMAs is shown. ``size`` is by addresses.
    """

    size: int
    sums: dict[str, int]
    exact: dict[str, int]
    moved: bool = False

    @property
    def rounded(self) -> dict[str, int]:
        """The sums of those fields of which the exact figure is another."""
        return {name: size for name, size in self.sums.items() if self.exact[name] != size}


def totals(process: ProcessMaps) -> Totals:
    """The totals of a process; ``moved`` where the rollup is of another moment than the VMAs, and was not used."""
    table = process.table
    size = sum(table.ends) - sum(table.starts)
    sums = table.sums()
    rollup = process.rollup
    if rollup is None or process.reader != "smaps" or not process.is_whole:
        return Totals(size, sums, sums)
    shares = [name for name in sums if _is_share(name) and name in rollup]
    most = max(len(table) * _KIB, 1)
    same = all(rollup.get(name) == sums.get(name) for name in _UNROUNDED)
    if not same or not all(0 <= rollup[name] - sums[name] < most for name in shares):
        return Totals(size, sums, sums, moved=True)
    return Totals(size, sums, {**sums, **{name: rollup[name] for name in shares}})


def _is_share(field: str) -> bool:
    """True for what counts a page by the share of its mappings: no multiple of a page, so each VMA's is rounded."""
    return field.startswith("Pss") or field in ("SwapPss", "Locked")
