"""Which functions of a mapped ELF file are an allocator's, and where to probe them.

An allocator is a file that *defines* malloc and free (or a prefixed pair of them). libstdc++'s operator new is not
one: it only calls malloc. Signatures: malloc(3), posix_memalign(3), jemalloc(3), gperftools' tcmalloc.h, mimalloc.h,
and the Itanium C++ ABI for the mangled operators.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from tracer.heap.returns import jump_target, return_sites
from tracer.symbols.elf import ElfImage
from tracer.symbols.elftypes import STB_LOCAL, Symbol

SiteKind = Literal["entry", "return", "ret-instruction"]


class AllocShape(Enum):
    """Where a function's arguments are: what its probe has to read."""

    MALLOC = "size"  # f(size)
    CALLOC = "count, size"  # f(count, size)
    REALLOC = "old, size"  # f(old, size)
    REALLOCARRAY = "old, count, size"  # f(old, count, size)
    MEMALIGN = "align, size"  # f(align, size)
    POSIX_MEMALIGN = "out, align, size"  # f(&out, align, size) -> 0 or an errno
    FREE = "ptr"  # f(ptr)
    NEW = "size, throws"  # as MALLOC, but an exception may leave it: a return probe would end the target
    DELETE = "deleted"  # as FREE

    @property
    def releases_only(self) -> bool:
        """True for what frees and returns nothing: its entry is all there is to see."""
        return self in (AllocShape.FREE, AllocShape.DELETE)


@dataclass(frozen=True, slots=True)
class ProbeSite:
    """One place to probe. ``vaddr`` and ``size`` are the function's (image address, bytes; size 0: unknown).

    ``file_offset`` is where the probe goes: the function's first instruction for ``entry`` and ``return`` (which
    ``tracer.heap.placement`` may move to a cheaper one), the instruction itself for ``ret-instruction``.
    """

    shape: AllocShape
    symbol: str
    file_offset: int
    vaddr: int
    size: int
    kind: SiteKind


@dataclass(frozen=True, slots=True)
class AllocatorImage:
    """The allocator in one file. ``notes`` say, a sentence each, what of it could not be probed."""

    name: str
    sites: tuple[ProbeSite, ...]
    notes: tuple[str, ...] = ()


_S = AllocShape
_PLAIN: dict[str, AllocShape] = {
    **dict.fromkeys(("malloc", "valloc", "pvalloc"), _S.MALLOC),
    "calloc": _S.CALLOC,
    **dict.fromkeys(("realloc", "reallocf"), _S.REALLOC),
    "reallocarray": _S.REALLOCARRAY,
    **dict.fromkeys(("memalign", "aligned_alloc"), _S.MEMALIGN),
    "posix_memalign": _S.POSIX_MEMALIGN,
    **dict.fromkeys(("free", "cfree", "vfree", "free_sized", "free_aligned_sized"), _S.FREE),
}
_JEMALLOC = {"mallocx": _S.MALLOC, "rallocx": _S.REALLOC, "dallocx": _S.FREE, "sdallocx": _S.FREE}
_TCMALLOC = {
    "tc_malloc_skip_new_handler": _S.MALLOC,
    "tc_free_sized": _S.FREE,
    **dict.fromkeys(("tc_new", "tc_newarray", "tc_new_nothrow", "tc_newarray_nothrow"), _S.NEW),
    **dict.fromkeys(("tc_new_aligned", "tc_newarray_aligned"), _S.NEW),
    **dict.fromkeys(("tc_new_aligned_nothrow", "tc_newarray_aligned_nothrow"), _S.NEW),
    **dict.fromkeys(("tc_delete", "tc_deletearray", "tc_delete_sized", "tc_deletearray_sized"), _S.DELETE),
    **dict.fromkeys(("tc_delete_aligned", "tc_deletearray_aligned"), _S.DELETE),
    **dict.fromkeys(("tc_delete_sized_aligned", "tc_deletearray_sized_aligned"), _S.DELETE),
    **dict.fromkeys(("tc_delete_nothrow", "tc_deletearray_nothrow"), _S.DELETE),
    **dict.fromkeys(("tc_delete_aligned_nothrow", "tc_deletearray_aligned_nothrow"), _S.DELETE),
}
_MIMALLOC = {
    **dict.fromkeys(("mi_zalloc", "mi_malloc_small", "mi_zalloc_small", "mi_malloc_aligned"), _S.MALLOC),
    **dict.fromkeys(("mi_zalloc_aligned", "mi_malloc_aligned_at", "mi_zalloc_aligned_at"), _S.MALLOC),
    "_aligned_malloc": _S.MALLOC,
    **dict.fromkeys(("mi_mallocn", "mi_calloc_aligned", "mi_calloc_aligned_at"), _S.CALLOC),
    **dict.fromkeys(("mi_reallocf", "mi_rezalloc", "mi_realloc_aligned", "mi_realloc_aligned_at"), _S.REALLOC),
    **dict.fromkeys(("mi_rezalloc_aligned", "mi_rezalloc_aligned_at"), _S.REALLOC),
    **dict.fromkeys(("mi_reallocn", "mi_recalloc", "mi_recalloc_aligned"), _S.REALLOCARRAY),
    **dict.fromkeys(("mi_free_size", "mi_free_size_aligned", "mi_free_aligned"), _S.FREE),
    **dict.fromkeys(("mi_new", "mi_new_nothrow", "mi_new_aligned", "mi_new_aligned_nothrow"), _S.NEW),
}
# glibc's and musl's own names for the same functions. A static musl program's malloc and free only jump to these.
_ALIASES = {
    **{f"__libc_{name}": shape for name, shape in _PLAIN.items()},
    **{f"__{name}": shape for name, shape in _PLAIN.items()},
    "__libc_malloc_impl": _S.MALLOC,
}
_PREFIXES = ("je_", "_rjem_", "tc_", "mi_")
_SHAPES: dict[str, AllocShape] = {
    **_PLAIN,
    **_ALIASES,
    **{prefix + name: shape for prefix in _PREFIXES for name, shape in _PLAIN.items()},
    **{prefix + name: shape for prefix in ("", "je_", "_rjem_") for name, shape in _JEMALLOC.items()},
    **_TCMALLOC,
    **_MIMALLOC,
}
# An allocator is there where both functions of one of these pairs are defined.
_PAIRS = (
    ("malloc", "free"),
    ("__libc_malloc", "__libc_free"),
    ("__libc_malloc_impl", "__libc_free"),  # musl, in a static program that calls no malloc of that name
    *((prefix + "malloc", prefix + "free") for prefix in _PREFIXES),
    *((prefix + "mallocx", prefix + "dallocx") for prefix in ("je_", "_rjem_")),
    *((prefix + "mallocx", prefix + "sdallocx") for prefix in ("je_", "_rjem_")),
)
# Placement new and delete (..Pv) allocate nothing and are left out, as are a class's own operators (_ZN..).
_NEW = re.compile(r"_Zn[wa]m(St11align_val_t)?(RKSt9nothrow_t)?(12__hot_cold_t)?")
_DELETE = re.compile(r"_Zd[la]Pvm?(St11align_val_t)?(RKSt9nothrow_t)?")
_MARKERS: tuple[tuple[str, frozenset[str]], ...] = (
    ("jemalloc", frozenset({"mallctl", "je_mallctl", "_rjem_mallctl", "je_malloc", "_rjem_malloc", "mallocx"})),
    ("tcmalloc", frozenset({"tc_malloc", "MallocExtension_ReleaseFreeMemory", "TCMallocInternalMalloc"})),
    ("mimalloc", frozenset({"mi_malloc", "mi_free"})),
)
_MARKER_NAMES = frozenset().union(*(names for _, names in _MARKERS))
_LOADER = re.compile(rb"(ld-linux.*|ld64)\.so(\.\d+)*|ld-\d+\.\d+\.so")
_MUSL_LOADER = re.compile(rb"ld-musl-.*\.so(\.\d+)*|libc\.musl-.*\.so(\.\d+)*")


def find_allocator(image: ElfImage, path: str) -> AllocatorImage | None:
    """The allocator that this file defines, with the places to probe, or None.

    ``path`` is the mapped file's path and serves for names only. Every function that returns a block gets an entry
    and a return site; one that may throw gets the ``ret`` instructions that it may reach in place of the return, or
    is left out, with a note, where these cannot all be found. A function that does nothing but jump to another one
    with the same arguments is left out: the other one sees the call.
    """
    base = path.removesuffix(" (deleted)").rpartition("/")[2].encode(errors="replace")
    if _LOADER.fullmatch(image.soname or base):
        return None
    functions = _interesting(image)
    defined = {name for name, symbol in functions.items() if not symbol.is_ifunc}
    if not any(defined.issuperset(pair) for pair in _PAIRS):
        return None
    kind = next((name for name, names in _MARKERS if not names.isdisjoint(functions)), None)
    notes = _ifunc_notes(functions)
    wanted = _preferred(_shaped(image, functions, with_operators=kind is not None))
    sites: list[ProbeSite] = []
    for name, (symbol, shape) in _without_forwarders(image, wanted).items():
        found, note = _sites(image, name, symbol, shape)
        sites += found
        notes += [note] if note else []
    if "mi_heap_malloc" in functions:
        notes.append("mimalloc: blocks from the mi_heap_* functions are not traced")
    if image.is_go:
        notes.append("a Go program: the C allocator in it is traced, Go's own heap is not")
    sites.sort(key=lambda site: (site.vaddr, site.kind, site.file_offset))
    return AllocatorImage(_name(image, base, kind), tuple(sites), tuple(notes))


def shape_of(name: str) -> AllocShape | None:
    """The shape of a function of this (mangled) name, None for one that is no allocator's."""
    if name.startswith("_Z"):
        return _S.NEW if _NEW.fullmatch(name) else _S.DELETE if _DELETE.fullmatch(name) else None
    return _SHAPES.get(name)


def _interesting(image: ElfImage) -> dict[str, Symbol]:
    """The image's functions that have a shape or tell whose allocator it is, by name."""
    wanted = {name.encode() for name in (*_SHAPES, *_MARKER_NAMES, "mi_heap_malloc")}
    found: dict[str, Symbol] = {}
    for symbol in image.symbols():
        if symbol.name in wanted or symbol.name[:4] in (b"_Znw", b"_Zna", b"_Zdl", b"_Zda"):
            name = symbol.name.decode(errors="replace")
            known = found.get(name)
            better = known is None or (known.binding == STB_LOCAL and symbol.binding != STB_LOCAL)
            if better and image.is_executable_vaddr(symbol.value):
                found[name] = symbol
    return found


def _shaped(
    image: ElfImage, functions: Mapping[str, Symbol], *, with_operators: bool
) -> Iterable[tuple[str, Symbol, AllocShape]]:
    for name, symbol in functions.items():
        shape = shape_of(name)
        if shape is None or symbol.is_ifunc or image.file_offset_of(symbol.value) is None:
            continue
        if with_operators or not name.startswith("_Z"):
            yield name, symbol, shape


def _preferred(
    candidates: Iterable[tuple[str, Symbol, AllocShape]],
) -> dict[str, tuple[Symbol, AllocShape]]:
    """One name for each address: the plain one rather than an operator, a prefixed or an underscored alias.

    NEW goes before MALLOC where they share the code: nothing says that such a function does not throw.
    """
    best: dict[int, tuple[tuple[bool, int, int, str], str, Symbol, AllocShape]] = {}
    for name, symbol, shape in candidates:
        plain = 0 if name in _PLAIN else 1 if name.startswith("_Z") else 3 if name.startswith("_") else 2
        # Of two operators that share their code, new goes before new[] and delete before delete[].
        rank = (shape is not _S.NEW, plain, len(name), name.replace("_Zna", "_Znz").replace("_Zda", "_Zdz"))
        if symbol.value not in best or rank < best[symbol.value][0]:
            best[symbol.value] = (rank, name, symbol, shape)
    return {name: (symbol, shape) for _, name, symbol, shape in best.values()}


def _without_forwarders(
    image: ElfImage, wanted: Mapping[str, tuple[Symbol, AllocShape]]
) -> dict[str, tuple[Symbol, AllocShape]]:
    by_address = {symbol.value: shape for symbol, shape in wanted.values()}
    kept: dict[str, tuple[Symbol, AllocShape]] = {}
    for name, (symbol, shape) in wanted.items():
        target = jump_target(image, symbol.value)
        same = target != symbol.value and target in by_address and _same_arguments(shape, by_address[target])
        if not same:
            kept[name] = (symbol, shape)
    return kept


def _same_arguments(shape: AllocShape, other: AllocShape) -> bool:
    # The target's own probes must also hold for the forwarder's callers: a return probe behind a throwing one may not.
    groups = ({_S.FREE, _S.DELETE}, {_S.NEW})
    return shape is other or any(shape in group and other in group for group in groups)


def _sites(image: ElfImage, name: str, symbol: Symbol, shape: AllocShape) -> tuple[list[ProbeSite], str | None]:
    offset = image.file_offset_of(symbol.value)
    if offset is None:
        return [], None

    def site(kind: SiteKind, at: int) -> ProbeSite:
        return ProbeSite(shape, name, at, symbol.value, symbol.size, kind)

    if shape.releases_only:
        return [site("entry", offset)], None
    if shape is not _S.NEW:
        return [site("entry", offset), site("return", offset)], None
    returns = return_sites(image, symbol.value, symbol.size)
    if not returns.complete:
        return [], f"{name} is not traced: {returns.reason}"
    return [site("entry", offset), *(site("ret-instruction", at) for at in returns.offsets)], None


def _ifunc_notes(functions: Mapping[str, Symbol]) -> list[str]:
    names = sorted(name for name, symbol in functions.items() if symbol.is_ifunc and shape_of(name))
    return [f"{name} is not traced: it is chosen at run time (IFUNC)" for name in names]


def _name(image: ElfImage, base: bytes, kind: str | None) -> str:
    if kind is not None:
        return kind
    soname = image.soname or base
    if soname == b"libc.so.6" or re.fullmatch(rb"libc-\d+\.\d+\.so", base):
        return "glibc malloc"
    if soname == b"libc.so" or _MUSL_LOADER.fullmatch(soname) or _MUSL_LOADER.fullmatch(base):
        return "musl malloc"
    return f"malloc in {base.decode(errors='replace')}"
