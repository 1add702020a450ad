"""The runs that the tests look at. Equal cases are run once (tests.bpf.runs)."""

from __future__ import annotations

from tests.bpf.runs import Case, jemalloc_is_probed, new_code_is_known, new_program_is_probed
from tests.targets.build import PLAIN_LEAKS

_LIBRARIES = ("libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2")
# mimalloc, written in C, aborts where operator new is to throw: FAILS 0 leaves that out.
_ARGUMENTS: dict[tuple[str, str], tuple[int, ...]] = {("leak_new", "libmimalloc.so.2"): (500, 150, 0)}

# Every form of allocation by every kind of linkage, and under every allocator that can be put in front.
LEAKS = (
    *(Case(name + variant) for variant in ("", "_static", "_musl", "_musl_static") for name in PLAIN_LEAKS),
    Case("leak_new"),
    *(
        Case(name, _ARGUMENTS.get((name, library), ()), preload=library)
        for library in _LIBRARIES
        for name in (*PLAIN_LEAKS, "leak_new")
    ),
)
# musl is built without unwind tables and without frame pointers, so nothing leads from its strdup to the caller.
WITHOUT_UNWIND_TABLES = (Case("leak_strdup_musl"), Case("leak_strdup_musl_static"))
STRIPPED = tuple(Case(f"{name}_stripped") for name in PLAIN_LEAKS)

# Verdicts and trends need a window of over three seconds and at least five looks: 17 of them, 0.2 s apart.
_PACED = ("-i", "0.2")
CHURN = Case("churn", (1024, 2000), options=_PACED, phases=17, paced=True)
CACHE = Case("cache", (4000, 6000), options=_PACED, phases=17, paced=True)
LEAK = Case("leak_malloc", (4000, 200), options=_PACED, phases=30, paced=True)
SLOW = (CHURN, CACHE, LEAK)

ARENAS = Case("arenas")
BIG = Case("big")
BIG_DYNAMIC = Case("big", (24, "dynamic"))
DIRECT_MMAP = Case("direct_mmap")
DIRECT_BRK = Case("direct_brk")
FORKER = Case("forker")
EXECER = Case("execer", phases=3, settle=new_program_is_probed)
PLUGIN = Case("dlopener", ("plugin",), options=("-i", "0.1"), phases=3, settle=new_code_is_known)
LATE_ALLOCATOR = Case("dlopener", ("allocator",), phases=3, settle=jemalloc_is_probed)
MALLOC_ADDRESS = Case("malloc_address")
FUNCTION_TABLE = Case("function_table")
FREE_OLD = Case("free_old")
KINDS = (
    ARENAS,
    BIG,
    BIG_DYNAMIC,
    DIRECT_MMAP,
    DIRECT_BRK,
    FORKER,
    EXECER,
    PLUGIN,
    LATE_ALLOCATOR,
    MALLOC_ADDRESS,
    FUNCTION_TABLE,
    FREE_OLD,
)
ALL = (*LEAKS, *STRIPPED, *SLOW, *KINDS)
