"""What a walk over malloc's heap found, in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

from tracer.heap.spans import Run

if TYPE_CHECKING:
    from tracer.heap.heap_index import HeapIndex

RefusedKind = Literal["no-glibc-heap", "changing", "too-large", "swapped", "unreadable"]
BlockState = Literal["in use", "freed", "unknown"]


@dataclass(frozen=True, slots=True)
class Refused:
    """Why there is no walk, in a sentence for people."""

    kind: RefusedKind
    reason: str


class WalkRefused(Exception):
    """Ends a walk inside tracer.heap; becomes a Refused at its edge."""

    def __init__(self, kind: RefusedKind, reason: str) -> None:
        super().__init__(reason)
        self.refused = Refused(kind, reason)


@dataclass(frozen=True, slots=True)
class HeapUse:
    """How malloc's memory is used: of one arena, or of several added up. Bytes, but for the two counts.

    ``system`` = ``live`` + ``free`` + ``fast`` + ``cached`` + ``top`` + ``overhead``. ``free`` are the chunks in bins,
    ``fast`` those in fastbins, ``cached`` those in threads' caches (tcache), ``top`` the rest behind the last chunk.
    ``overhead`` holds chunk headers, arenas' and caches' own tables, and memory within the main arena that another
    user of the program break took (``foreign``). ``resident`` and what ends in ``_resident`` are in memory; what
    malloc_trim(0) would give back to the kernel is ``returnable``.
    """

    system: int = 0
    free: int = 0
    fast: int = 0
    cached: int = 0
    top: int = 0
    overhead: int = 0
    foreign: int = 0
    chunks: int = 0
    free_chunks: int = 0
    resident: int = 0
    free_resident: int = 0
    fast_resident: int = 0
    cached_resident: int = 0
    top_resident: int = 0
    returnable: int = 0

    @property
    def in_use(self) -> int:
        """As mallinfo2's ``uordblks``: all that is neither in bins nor in fastbins nor the top."""
        return self.system - self.free - self.fast - self.top

    @property
    def live(self) -> int:
        """Usable bytes of the blocks that the program holds."""
        return self.in_use - self.cached - self.overhead

    @property
    def kept(self) -> int:
        """Resident bytes that are free: in bins, fastbins and caches, and of the top."""
        return self.free_resident + self.fast_resident + self.cached_resident + self.top_resident

    def __add__(self, other: HeapUse) -> HeapUse:
        return HeapUse(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


@dataclass(frozen=True, slots=True)
class ArenaUse:
    """One arena at ``address``; ``regions`` is the number of ranges that its memory consists of."""

    address: int
    is_main: bool
    regions: int
    use: HeapUse


@dataclass(frozen=True, slots=True)
class MmappedUse:
    """The chunks that malloc mapped one by one: ``count`` and ``size`` by its own books, bytes.

    ``found`` of them, with ``resident`` bytes, were found in memory.
    """

    count: int = 0
    size: int = 0
    found: int = 0
    resident: int = 0

    @property
    def is_complete(self) -> bool:
        """True where all were found."""
        return self.found == self.count


@dataclass(frozen=True, slots=True)
class MallocParameters:
    """malloc's settings (struct malloc_par, mallopt(3)); bytes, but for counts. ``arena_max`` 0: by the processors.

    ``is_dynamic``: the mmap and trim thresholds follow the blocks that are freed (no mallopt has fixed them).
    """

    trim_threshold: int
    top_pad: int
    mmap_threshold: int
    arena_max: int
    is_dynamic: bool
    mmapped_count: int
    mmapped_size: int
    thp_page_size: int = 0
    cache_count: int = 0


@dataclass(frozen=True, slots=True)
class RangeUse:
    """Resident bytes of an address range by what malloc has in it; ``mapped`` is malloc's by single mappings."""

    live: int = 0
    free: int = 0
    fast: int = 0
    cached: int = 0
    top: int = 0
    overhead: int = 0
    mapped: int = 0

    @property
    def total(self) -> int:
        """All that is malloc's and resident in the range."""
        return self.live + self.kept + self.overhead + self.mapped

    @property
    def kept(self) -> int:
        """What of it is free."""
        return self.free + self.fast + self.cached + self.top

    def __add__(self, other: RangeUse) -> RangeUse:
        return RangeUse(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk of the heap: ``address`` of its block (as malloc returned it) and its usable ``size`` in bytes."""

    address: int
    size: int
    state: Literal["in use", "free", "fast", "cached", "mapped"]


@dataclass(frozen=True, slots=True)
class HeapWalk:
    """A finished walk over all arenas. ``main`` is the first of ``arenas``.

    ``changed`` is set where the process allocated or freed meanwhile: the chunks then were not all seen at the same
    moment, and sums are off by what changed. ``notes`` say in sentences what could not be seen.
    """

    arenas: tuple[ArenaUse, ...]
    mmapped: MmappedUse
    parameters: MallocParameters | None
    changed: bool
    seconds: float
    notes: tuple[str, ...] = ()
    _index: HeapIndex | None = field(default=None, repr=False, compare=False)

    @property
    def total(self) -> HeapUse:
        """All arenas added up; the mapped chunks are not in it."""
        return sum((arena.use for arena in self.arenas), HeapUse())

    def within(self, start: int, end: int) -> RangeUse:
        """What of the resident memory between two addresses is malloc's, by use. Some microseconds a call."""
        return self._index.within(start, end) if self._index else RangeUse()

    def free_ranges(self, start: int = 0, end: int = 1 << 64) -> Iterator[Run]:
        """The free chunks (in bins) that overlap with a range, cut to it, ascending; resident or not."""
        return self._index.free_ranges(start, end) if self._index else iter(())

    def chunk_at(self, address: int) -> Chunk | None:
        """The chunk whose block begins at ``address``; None where none does."""
        return self._index.chunk_at(address) if self._index else None

    def state_of(self, addresses: Iterable[int]) -> list[BlockState]:
        """Whether a block in use begins at each address. About a microsecond an address.

        "unknown" is said only outside of the arenas, where not all mapped chunks were found.
        """
        return [self._state(address) for address in addresses]

    def are_live(self, addresses: Sequence[int]) -> list[bool]:
        """The same as yes or no; what is unknown counts as in use."""
        return [state != "freed" for state in self.state_of(addresses)]

    def _state(self, address: int) -> BlockState:
        chunk = self.chunk_at(address)
        if chunk is not None:
            return "in use" if chunk.state in ("in use", "mapped") else "freed"
        inside = self._index is not None and self._index.is_arena_memory(address)
        return "freed" if inside or self.mmapped.is_complete else "unknown"
