"""What to do about memory that was freed but is kept by the allocator: the finding and its remedies, in sentences.

The settings are those of mallopt(3) and the GNU C library's tunables, jemalloc(3) (TUNING), gperftools' tcmalloc.html
and mimalloc's README.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tracer.heap.heap_walk import HeapUse, HeapWalk, MallocParameters
from tracer.units import human_bytes, percent, plural

# What the sum is called where a heap cannot be walked.
ESTIMATE_LABEL = "RSS of its ranges minus live bytes"

RetentionKind = Literal["little", "returnable", "top", "arenas", "fragmented", "allocator"]

# Less than this, or than this share of the heap, is not worth a remedy.
_MIN_KEPT = 1 << 20
_MIN_SHARE = 0.1
# A remedy is named when it concerns so much of what is kept.
_CONSIDERABLE = 0.2
_DEFAULT_THRESHOLD = 128 << 10
_FEW_ARENAS = 2

_OTHER_REMEDIES = {
    "jemalloc": (
        "jemalloc returns pages some time after they were freed: MALLOC_CONF=background_thread:true,"
        "dirty_decay_ms:1000,muzzy_decay_ms:0 does it sooner, mallctl arena.<i>.purge at once"
    ),
    "tcmalloc": (
        "tcmalloc returns pages slowly: TCMALLOC_RELEASE_RATE=10 does it faster, "
        "MallocExtension::instance()->ReleaseFreeMemory() at once"
    ),
    "mimalloc": (
        "mimalloc returns pages after a delay: MIMALLOC_PURGE_DELAY=0 (2.1 or newer) takes it away, "
        "mi_collect(true) returns them at once"
    ),
    "musl malloc": (
        "musl's malloc returns what it can by itself: what is left lies between blocks in use; "
        "allocate blocks that live long apart from those that do not"
    ),
}


@dataclass(frozen=True, slots=True)
class Advice:
    """``finding`` is a sentence with the bytes, ``remedies`` name what helps, the largest part first.

    ``kind`` is that of the first remedy; "little" where nothing need be done, "allocator" where another allocator
    than glibc's is used and only the sum is known.
    """

    kind: RetentionKind
    finding: str
    remedies: tuple[str, ...] = ()


def why_not_walked(allocator: str) -> str | None:
    """Why the heap of an allocator (as tracer.heap.allocators names it) is not walked; None for glibc's."""
    if allocator == "glibc malloc":
        return None
    return f"the heap of {allocator} cannot be read from outside; what it keeps is an estimate: {ESTIMATE_LABEL}"


def advise(walk: HeapWalk) -> Advice:
    """The finding for glibc's heap."""
    use = walk.total
    if use.kept < max(_MIN_KEPT, _MIN_SHARE * use.resident):
        return Advice("little", f"malloc keeps {_of(use.kept, use.resident)} of its resident heap free: little")
    finding = (
        f"malloc keeps {_of(use.kept, use.resident)} of its resident heap free; "
        f"malloc_trim(0) would return {human_bytes(use.returnable)}"
    )
    found = [each for each in _remedies(walk, use) if each.bytes >= max(_MIN_KEPT, _CONSIDERABLE * use.kept)]
    found.sort(key=lambda each: -each.bytes)
    return Advice(found[0].kind if found else "fragmented", finding, tuple(each.text for each in found))


def advise_other(allocator: str, kept: int, resident: int) -> Advice:
    """The finding for another allocator: ``kept`` of its ``resident`` bytes are not live, by estimate."""
    share = f"{allocator} keeps about {_of(kept, resident)} of its resident memory beyond live blocks"
    finding = f"{share} ({ESTIMATE_LABEL})"
    if kept < max(_MIN_KEPT, _MIN_SHARE * resident):
        return Advice("little", finding)
    remedy = _OTHER_REMEDIES.get(allocator)
    return Advice("allocator", finding, (remedy,) if remedy else ())


@dataclass(frozen=True, slots=True)
class _Remedy:
    kind: RetentionKind
    bytes: int
    text: str


def _remedies(walk: HeapWalk, use: HeapUse) -> Iterator[_Remedy]:
    main = walk.arenas[0].use
    cut = min(main.returnable, main.top_resident)
    inside = use.returnable - cut
    yield _Remedy("returnable", inside, f"{_whole_pages(inside)}: call malloc_trim(0) once the load is over")
    yield _Remedy("top", main.top_resident, _top(main.top_resident, walk.parameters))
    others = [arena.use.kept for arena in walk.arenas[1:]]
    if len(others) >= _FEW_ARENAS:
        text = (
            f"{human_bytes(sum(others))} are free in {plural(len(others), 'arena')} of threads: "
            f"MALLOC_ARENA_MAX={_FEW_ARENAS} lets threads share arenas"
        )
        yield _Remedy("arenas", sum(others), text)
    stuck = use.free_resident + use.fast_resident - inside
    yield _Remedy(
        "fragmented",
        stuck,
        f"{human_bytes(stuck)} are holes smaller than a page or share pages with blocks in use: nothing returns them "
        "while these live; allocate what lives long apart from what does not",
    )
    cached = use.cached_resident
    yield _Remedy(
        "fragmented",
        cached,
        f"{human_bytes(cached)} wait in threads' caches: GLIBC_TUNABLES=glibc.malloc.tcache_count=0 does without them",
    )


def _whole_pages(size: int) -> str:
    return f"{human_bytes(size)} are whole free pages between blocks in use"


def _top(size: int, parameters: MallocParameters | None) -> str:
    """The end of the main arena is free: why it is kept."""
    text = f"{human_bytes(size)} are free at the end of the main arena"
    threshold = parameters.trim_threshold if parameters else _DEFAULT_THRESHOLD
    if threshold <= _DEFAULT_THRESHOLD or parameters is None:
        return f"{text}: malloc_trim(0) returns them"
    kept = f"{text}, below the trim threshold of {human_bytes(threshold)}"
    if parameters.is_dynamic:
        return (
            f"{kept}, which large blocks raised as they were freed: M_MMAP_THRESHOLD or M_TRIM_THRESHOLD "
            "(GLIBC_TUNABLES=glibc.malloc.mmap_threshold=131072) keeps it where it is set"
        )
    return f"{kept}, which the program has set: lower M_TRIM_THRESHOLD (mallopt), or call malloc_trim(0)"


def _of(part: int, whole: int) -> str:
    return f"{human_bytes(part)} ({percent(part, whole)})"
